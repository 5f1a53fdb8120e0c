"""What happens to a search, as it happens: Server-Sent Events, from any event on, so that a lost connection loses nothing.

A stream holds neither a thread nor a connection to the database while it waits: any number of them fit into a process.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from api.auth import Reader
from api.deps import AppDatabase, SearchId
from api.errors import responses
from service import keys, repositories
from service.database import Database
from service.keys import Caller
from service.models import Event, Search
from service.notices import NOTICES, Notice

POLL_SECONDS = 0.5
MAX_EVENTS = 500
"""How many are read at once."""

router = APIRouter(prefix="/v1", tags=["events"])

logger = logging.getLogger(__name__)

EventNumber = Annotated[int | None, Query(ge=0, le=2**63 - 1, description="Send only what came after this event")]
LastEventId = Annotated[
    int | None, Header(ge=0, le=2**63 - 1, description="The same, as browsers say it when they connect anew; it wins")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """The next events of a search; ``is_over``: nothing is expected to follow them."""

    notices: Sequence[Notice] = ()
    is_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What a client follows: the events of a search after one of them, for as long as its key is valid."""

    database: Database
    caller: Caller
    search_id: str
    after: int
    follow: bool

    def read(self, after: int) -> News:
        """What came after an event; none for now, if the database does not answer."""
        try:
            with self.database.read() as session:
                return self._read(session, after)
        except SQLAlchemyError as error:
            # The operator hears of it elsewhere; a line for every stream, twice a second, would bury that.
            logger.debug("a stream of events waits for the database: %s", type(error).__name__)
            return News()

    def _read(self, session: Session, after: int) -> News:
        if not keys.is_valid(session, self.caller):
            return News(is_over=True)
        # Two columns: there is mostly nothing new, and building the whole search would be all of the work.
        state, last = session.execute(select(Search.state, Search.last_event).where(Search.id == self.search_id)).one()
        notices = _notices(session, self.search_id, after) if last > after else []
        seen = notices[-1].number if notices else after
        # Something may follow the last state: a trial that is excluded later on. Who connects anew is told.
        return News(notices=notices, is_over=seen >= last and (state.is_final or not self.follow))


def _notices(session: Session, search_id: str, after: int) -> list[Notice]:
    query = select(Event).where(Event.search_id == search_id, Event.number > after).order_by(Event.number)
    return [Notice.of(event) for event in session.scalars(query.limit(MAX_EVENTS))]


def _stream(
    search_id: SearchId,
    database: AppDatabase,
    caller: Reader,
    response: Response,
    after: EventNumber = None,
    last_event_id: LastEventId = None,
    follow: Annotated[bool, Query(description="false: send what there is, and end")] = True,
) -> Stream:
    """Refusals come before the first event, because afterwards the status has been sent."""
    start = last_event_id if last_event_id is not None else after or 0
    with database.read() as session:
        search = repositories.search_by_id(session, search_id)
    if follow and search.state.is_final and start >= search.last_event:
        response.status_code = 204  # by which a browser knows not to connect again
    return Stream(database=database, caller=caller, search_id=search_id, after=start, follow=follow)


_DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The number of an event as `id`, its kind as `event`, and as `data` a JSON object",
        "content": {
            "text/event-stream": {
                "itemSchema": {
                    "properties": {
                        "data": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": NOTICES.json_schema(),
                        }
                    }
                }
            }
        },
    },
    204: {"description": "The search has ended, and nothing came after `Last-Event-ID`"},
}


@router.get(
    "/searches/{search_id}/events",
    response_class=EventSourceResponse,
    responses={**responses(404, 422), **_DOCUMENTED},
)
async def stream_events(
    stream: Annotated[Stream, Depends(_stream)], request: Request
) -> AsyncIterator[ServerSentEvent]:
    """The events of a search from the first on, or after `Last-Event-ID`, until it has ended."""
    after = stream.after
    while True:
        news = await run_in_threadpool(stream.read, after)
        for notice in news.notices:
            yield ServerSentEvent(id=str(notice.number), event=notice.kind, raw_data=notice.json().decode())
            after = notice.number
        if news.is_over or _is_stopping(request):
            return
        if not news.notices:
            await asyncio.sleep(POLL_SECONDS)


def _is_stopping(request: Request) -> bool:
    """Whether the server is about to end; it waits for streams that do not end themselves."""
    asked = getattr(request.app.state, "is_stopping", None)
    return asked is not None and bool(asked())
