"""What is asked of a database meanwhile, and how it would carry that out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.orm import Session

from service.database import Database


@contextmanager
def statements_of(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """The SELECTs that are sent meanwhile, with their parameters."""
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        if statement.startswith("SELECT"):
            sent.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def query_plan(session: Session, is_sqlite: bool, statement: str, parameters: Any) -> str:
    """How the database would carry out a query over very many rows."""
    if not is_sqlite:
        # These tables hold next to nothing, so Postgres would rather read them whole, or sort what it finds.
        for way in ("seqscan", "bitmapscan", "sort", "incremental_sort"):
            session.execute(text(f"SET LOCAL enable_{way} = off"))
    explain = "EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN "
    rows = session.connection().exec_driver_sql(explain + statement, parameters)
    return "\n".join(str(row[-1]) for row in rows)
