"""The time by the clock of the database, which is one for all processes and machines."""

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from service.columns import UTCDateTime


class database_time(FunctionElement[datetime]):
    """The time of the statement, as an expression in SQL."""

    type = UTCDateTime()
    inherit_cache = True


@compiles(database_time, "postgresql")
def _on_postgres(element: database_time, compiler: SQLCompiler, **options: Any) -> str:
    return "clock_timestamp()"


@compiles(database_time, "sqlite")
def _on_sqlite(element: database_time, compiler: SQLCompiler, **options: Any) -> str:
    # As SQLAlchemy writes a time there, so that both compare as text.
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def now(session: Session) -> datetime:
    """The time of this transaction: asked for once, the same for everything that is written in it."""
    if "now" not in session.info:
        session.info["now"] = session.execute(select(database_time())).scalar_one()
    time: datetime = session.info["now"]
    return time
