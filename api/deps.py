"""What endpoints are handed: the database, the settings, a page request, an id that can be one. Callers: ``api.auth``."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from sqlalchemy.orm import Session

from api.limits import RateLimit
from service.database import Database
from service.paging import PageRequest
from service.settings import Settings

MAX_SESSIONS = 10
"""How many requests have a session at once; fewer than the connections that SQLAlchemy's pool keeps, which are 15."""


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _rate_limit(request: Request) -> RateLimit:
    # In the one thread of the event loop, so that there is never a second one.
    state = request.app.state
    if not hasattr(state, "rate_limit"):
        state.rate_limit = RateLimit()
    limit: RateLimit = state.rate_limit
    return limit


async def _turn(request: Request) -> AsyncIterator[None]:
    # A request that has a session needs a thread to go on, and one that has a thread may wait for a session: were more
    # let in than there are connections, both could wait for each other until the timeout.
    async with request.app.state.turns:
        yield


def _reading(
    database: Annotated[Database, Depends(_database)], turn: Annotated[None, Depends(_turn)]
) -> Iterator[Session]:
    with database.read() as session:
        yield session


def _writing(
    database: Annotated[Database, Depends(_database)], turn: Annotated[None, Depends(_turn)]
) -> Iterator[Session]:
    with database.write() as session:
        yield session


def _page(
    page_size: Annotated[int, Query(ge=1, le=500, description="How many items at most")] = 50,
    page_token: Annotated[str | None, Query(max_length=1000, description="From an earlier answer")] = None,
) -> PageRequest:
    return PageRequest(size=page_size, token=page_token)


AppDatabase = Annotated[Database, Depends(_database)]
AppSettings = Annotated[Settings, Depends(_settings)]
AppRateLimit = Annotated[RateLimit, Depends(_rate_limit)]
Reading = Annotated[Session, Depends(_reading)]
# "function" ends the transaction before the answer is sent: an answer says what was committed.
Writing = Annotated[Session, Depends(_writing, scope="function")]
Paging = Annotated[PageRequest, Depends(_page)]
SearchId = Annotated[str, Path(max_length=32, pattern=r"^[0-9a-f]{1,32}$", examples=["5f0c2ab91d3e"])]
_TRIAL_ID = r"^[0-9a-f]{1,32}-[0-9]{1,8}$"
TrialId = Annotated[str, Path(max_length=48, pattern=_TRIAL_ID, examples=["5f0c2ab91d3e-7"])]
ComparedTrial = Annotated[
    str, Query(max_length=48, pattern=_TRIAL_ID, description="A trial of it", examples=["5f0c2ab91d3e-7"])
]
