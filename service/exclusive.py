"""One runner per database: a lock that the operating system or Postgres lets go of when its holder dies."""

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url, text

from service.database import Database

_ADVISORY_KEY = 0x65696E73  # "eins"; Postgres locks are numbers
_RETRY_SECONDS = 0.5

logger = logging.getLogger(__name__)


@contextmanager
def only_runner(database: Database, url: str) -> Iterator[None]:
    """Wait until no other runner works on this database, then hold others off."""
    if database.is_sqlite:
        with _file_lock(Path(f"{make_url(url).database}.runner")):
            yield
    else:
        with _advisory_lock(database):
            yield


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("another runner works on this database; waiting for it to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _advisory_lock(database: Database) -> Iterator[None]:
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        told = False
        while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY_KEY}):
            if not told:
                logger.warning("another runner works on this database; waiting for it to end")
                told = True
            time.sleep(_RETRY_SECONDS)
        try:
            yield
        finally:
            # The lock lives as long as its connection, which would otherwise go back to the pool and keep it.
            connection.invalidate()
