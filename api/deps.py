"""What endpoints are handed: the database, the settings, a page request, an id that can be one."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from sqlalchemy.orm import Session

from service.database import Database
from service.repositories import PageRequest
from service.settings import Settings


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _reading(database: Annotated[Database, Depends(_database)]) -> Iterator[Session]:
    with database.read() as session:
        yield session


def _writing(database: Annotated[Database, Depends(_database)]) -> Iterator[Session]:
    with database.write() as session:
        yield session


def _page(
    page_size: Annotated[int, Query(ge=1, le=500, description="How many items at most")] = 50,
    page_token: Annotated[str | None, Query(max_length=1000, description="From an earlier answer")] = None,
) -> PageRequest:
    return PageRequest(size=page_size, token=page_token)


AppDatabase = Annotated[Database, Depends(_database)]
AppSettings = Annotated[Settings, Depends(_settings)]
Reading = Annotated[Session, Depends(_reading)]
# "function" ends the transaction before the answer is sent: an answer says what was committed.
Writing = Annotated[Session, Depends(_writing, scope="function")]
Paging = Annotated[PageRequest, Depends(_page)]
SearchId = Annotated[str, Path(max_length=32, pattern=r"^[0-9a-f]{1,32}$", examples=["5f0c2ab91d3e"])]
TrialId = Annotated[str, Path(max_length=48, pattern=r"^[0-9a-f]{1,32}-[0-9]{1,8}$", examples=["5f0c2ab91d3e-7"])]
