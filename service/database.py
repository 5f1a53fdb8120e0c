"""Connections and transactions. Nothing else begins or commits one."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

_BUSY_TIMEOUT_MS = 15_000
"""How long an SQLite writer waits for another; longer than any transaction here, shorter than a client's patience."""


_CONNECTION_LIMITS = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
_SESSION_LIMITS = "-c statement_timeout=30s -c idle_in_transaction_session_timeout=10s"
"""No answer of a Postgres is waited for without end, and a process that is stopped in the middle of a transaction, or whose
machine is gone, does not hold its locks for ever. The ``options`` of a URL come after these."""

_IDLE_IN_TRANSACTION = "25P03"
"""The SQLSTATE with which Postgres ends a connection of which nothing was heard within a transaction."""


class Database:
    """One database; ``read()`` and ``write()`` are its transactions, and its only ones."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine = create_engine(parsed)
            _set_up_sqlite(self.engine)
            self._reader: Engine = self.engine
            # SQLite upgrades a read transaction to a write one only if nobody wrote in between, and fails at once
            # otherwise. A transaction that is going to write therefore takes the write lock when it begins.
            self._writer: Engine = self.engine.execution_options(begin="BEGIN IMMEDIATE")
        else:
            self.engine = self._writer = create_engine(parsed, pool_pre_ping=True, connect_args=_limits(parsed))
            _set_up_postgres(self.engine)
            # By default every statement of a transaction sees what was committed before it, not before the transaction.
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one state of the database and changes nothing."""
        with Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed when the block ends and rolled back when it raises."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def ping(self) -> None:
        """Ask the database for a sign of life.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: there is none.
        """
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()


def _limits(url: URL) -> dict[str, Any]:
    options = " ".join([_SESSION_LIMITS, *url.normalized_query.get("options", ())])
    return {**_CONNECTION_LIMITS, "options": options}


def _set_up_postgres(engine: Engine) -> None:
    @event.listens_for(engine, "handle_error")
    def on_error(context: ExceptionContext) -> None:
        # Of a transaction in which this process, or its machine, slept for too long there is nothing left: to us that is a
        # connection that was lost, and not the internal error that the driver takes it for.
        error = context.original_exception
        if isinstance(error, Exception) and getattr(error, "sqlstate", None) == _IDLE_IN_TRANSACTION:
            raise OperationalError(context.statement, None, error, connection_invalidated=True) from error


def _set_up_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, below
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
