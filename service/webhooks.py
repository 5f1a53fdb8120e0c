"""Webhooks: who is told of events, how far each has been told, and the thread that tells them.

Every webhook has a cursor for each search that it follows. The events after it are sent in their order, each at least once:
the cursor moves on when the receiver has taken an event, and after a failure the same event is tried again, later and later.
Any number of senders may run: one of them claims a cursor by putting its next try into the near future, so that no
transaction is open while a receiver thinks, and a sender that dies holds a cursor up for ``CLAIM`` only.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from sqlalchemy import Select, and_, delete, func, insert, literal, or_, select, union_all
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service import repositories
from service.clock import database_time, now
from service.database import Database
from service.errors import NotFound, ServiceError
from service.events import Kind
from service.keys import Caller
from service.models import Delivery, Event, Search, Webhook
from service.notices import Answer, Notice, Receiver, send
from service.paging import Key, Page, PageRequest, page_of

MAX_PER_OWNER = 100
"""How many webhooks an owner may have: each one looks at every search of the owner, every second."""

CLAIM = timedelta(seconds=30)
"""For how long a cursor is a sender's own; longer than a receiver has to answer."""

_FIRST_RETRY, _LAST_RETRY = timedelta(seconds=5), timedelta(hours=1)
_EVENTS_AT_ONCE = 100
_RECEIVERS_AT_ONCE = 16
_SHOWN = 100
_MOMENT = 2.0
"""Seconds that receivers have to finish when a sender stops."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class TooManyWebhooks(ServiceError):
    """The owner has as many webhooks as there may be."""

    status_code = 409
    code = "too_many_webhooks"

    def __init__(self) -> None:
        super().__init__(f"expected at most {MAX_PER_OWNER} webhooks of one owner; delete one that is not needed")


def register(
    session: Session, caller: Caller, *, url: str, kinds: Sequence[Kind], search_id: str | None = None
) -> Webhook:
    """A new webhook of the caller, for one search or for all of the caller's; it is told of what happens from now on.

    Raises:
        NotFound, Forbidden: there is no such search, or it is somebody else's.
        TooManyWebhooks: the caller has as many as there may be.
    """
    if search_id is not None:
        caller.require_owner(repositories.search_by_id(session, search_id))
    present = session.scalar(select(func.count()).select_from(Webhook).where(Webhook.owner == caller.owner))
    if (present or 0) >= MAX_PER_OWNER:
        raise TooManyWebhooks
    webhook = Webhook(
        id=secrets.token_hex(6),
        owner=caller.owner,
        url=url,
        secret=secrets.token_urlsafe(32),
        search_id=search_id,
        kinds=list(kinds),
        created_at=now(session),
    )
    session.add(webhook)
    session.flush()
    _begin_at_present(session, webhook)
    return webhook


def listing(session: Session, caller: Caller, page: PageRequest) -> Page[Webhook]:
    """The webhooks of the caller, newest first.

    Raises:
        BadPageToken: the token is not one of this list.
    """
    query = select(Webhook).where(Webhook.owner == caller.owner)
    return page_of(session, query, page, [Key(Webhook.created_at), Key(Webhook.id)], descending=True)


def by_id(session: Session, caller: Caller, webhook_id: str) -> Webhook:
    """A webhook of the caller.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    webhook = session.get(Webhook, webhook_id)
    if webhook is None or webhook.owner != caller.owner:
        raise NotFound("webhook", webhook_id)
    return webhook


def deliveries(session: Session, webhook_id: str) -> Sequence[Delivery]:
    """How far a webhook has been told of its searches: of at most a hundred, first those where it fails."""
    query = select(Delivery).where(Delivery.webhook_id == webhook_id)
    return session.scalars(
        query.order_by(Delivery.failures.desc(), Delivery.not_before.desc(), Delivery.search_id).limit(_SHOWN)
    ).all()


def remove(session: Session, caller: Caller, webhook_id: str) -> None:
    """Delete a webhook of the caller; nothing more is sent, but for what is on its way.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    by_id(session, caller, webhook_id)
    session.get(Webhook, webhook_id, with_for_update=True)  # against a claim, which adds deliveries
    session.execute(delete(Delivery).where(Delivery.webhook_id == webhook_id))
    session.execute(delete(Webhook).where(Webhook.id == webhook_id))


async def send_test(database: Database, caller: Caller, webhook_id: str, *, allow_private: bool) -> Answer:
    """Send a test to a webhook of the caller now, and say what came of it.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """

    def read() -> tuple[Webhook, datetime]:
        with database.read() as session:
            return by_id(session, caller, webhook_id), now(session)

    webhook, at = await asyncio.to_thread(read)
    notice = Notice(number=0, kind="test", search_id=None, trial_id=None, at=at, data={"webhook_id": webhook.id})
    return await send(_receiver(webhook), notice, allow_private=allow_private)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far one webhook has been told of one search."""

    webhook_id: str
    search_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one sender, and no other until then, is to send: the notices up to an event, in their order."""

    cursor: Cursor
    receiver: Receiver
    notices: tuple[Notice, ...]
    up_to: int
    until: datetime


def due(session: Session, limit: int) -> list[Cursor]:
    """The cursors that are behind their search and may be tried now; those that do not fail come first."""
    own = _behind().where(Webhook.search_id == Search.id)
    all_of_owner = _behind().where(Webhook.search_id.is_(None), Webhook.owner == Search.owner)
    both = union_all(own, all_of_owner).subquery()
    query = select(both.c.webhook_id, both.c.search_id).order_by(both.c.failures, both.c.not_before).limit(limit)
    return [Cursor(webhook_id=webhook, search_id=search) for webhook, search in session.execute(query)]


def claim(session: Session, cursor: Cursor) -> Claim | None:
    """The events that the cursor stands before, for this sender alone; None where there are none, or others were faster."""
    # The lock makes it one sender at a time, and the webhook stay.
    webhook = session.get(Webhook, cursor.webhook_id, with_for_update=True)
    search = session.get(Search, cursor.search_id)
    if webhook is None or search is None:
        return None
    delivery = _delivery(session, cursor)
    if delivery.not_before > now(session):
        return None
    notices = _notices(session, webhook, search, delivery.delivered)
    up_to = notices[-1].number if len(notices) == _EVENTS_AT_ONCE else search.last_event
    if not notices:
        delivery.delivered = up_to
        return None
    delivery.not_before = now(session) + CLAIM
    return Claim(cursor=cursor, receiver=_receiver(webhook), notices=notices, up_to=up_to, until=delivery.not_before)


def record(session: Session, claim: Claim, answer: Answer) -> Claim | None:
    """Move the cursor beyond the first notice of a claim, or its next try into the future; the rest of the claim, if any.

    A claim that others have taken over meanwhile changes nothing.
    """
    time = now(session)
    # Whoever locks both, locks the webhook first.
    session.get(Webhook, claim.cursor.webhook_id, with_for_update={"read": True, "key_share": True})
    delivery = session.get(Delivery, (claim.cursor.webhook_id, claim.cursor.search_id), with_for_update=True)
    if delivery is None or delivery.not_before != claim.until:
        return None
    if not answer.ok:
        delivery.failures += 1
        delivery.last_error = answer.why_not
        delivery.not_before = time + retry_after(delivery.failures)
        return None
    rest = claim.notices[1:]
    delivery.delivered = claim.notices[0].number if rest else claim.up_to
    delivery.failures, delivery.last_error = 0, None
    delivery.not_before = time + CLAIM if rest else time
    return replace(claim, notices=rest, until=delivery.not_before) if rest else None


def retry_after(failures: int) -> timedelta:
    """How long to wait after so many failures in a row."""
    return min(_FIRST_RETRY * (1 << min(failures - 1, 20)), _LAST_RETRY)


class WebhookSender:
    """A thread that sends what is due, every second, to several receivers at once; a slow one holds up nobody else.

    It survives whatever the receivers and the database do. What was being sent when it is stopped may be sent again.
    """

    def __init__(self, database: Database, *, allow_private: bool, interval: float = 1.0) -> None:
        self._database = database
        self._allow_private = allow_private
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="webhooks", daemon=True)
        self._sending: set[asyncio.Task[int]] = set()

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more."""
        self._stopping.set()
        self._thread.join()

    async def deliver_due(self) -> int:
        """Send what is due now; how many events arrived."""
        await self._begin_due()
        return sum(await asyncio.gather(*self._sending))

    async def _run(self) -> None:
        # Names that take long to look up hold threads, which must not be all that there are.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(3 * _RECEIVERS_AT_ONCE))
        while not self._stopping.is_set():
            await self._begin_due()
            await asyncio.to_thread(self._stopping.wait, self._interval)
        if self._sending:
            await asyncio.wait(self._sending, timeout=_MOMENT)

    async def _begin_due(self) -> None:
        try:
            cursors = await asyncio.to_thread(self._due)
        except SQLAlchemyError as error:
            logger.warning("webhooks wait for the database: %s", type(error).__name__)
            return
        for cursor in cursors:
            task = asyncio.create_task(self._deliver(cursor))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    def _due(self) -> list[Cursor]:
        with self._database.read() as session:
            return due(session, _RECEIVERS_AT_ONCE - len(self._sending))

    async def _deliver(self, cursor: Cursor) -> int:
        """Send what a cursor stands before; how many events arrived."""
        num_arrived = 0
        try:
            claimed = await self._write(partial(claim, cursor=cursor))
            while claimed is not None:
                answer = await send(claimed.receiver, claimed.notices[0], allow_private=self._allow_private)
                num_arrived += answer.ok
                if not answer.ok:
                    logger.info("webhook %s, search %s: %s", cursor.webhook_id, cursor.search_id, answer.why_not)
                claimed = await self._write(partial(record, claim=claimed, answer=answer))
        except SQLAlchemyError as error:
            logger.warning("webhook %s waits for the database: %s", cursor.webhook_id, type(error).__name__)
        return num_arrived

    async def _write(self, use: Callable[[Session], T]) -> T:
        def transaction() -> T:
            with self._database.write() as session:
                return use(session)

        return await asyncio.to_thread(transaction)


def _receiver(webhook: Webhook) -> Receiver:
    return Receiver(webhook_id=webhook.id, url=webhook.url, secret=webhook.secret)


def _begin_at_present(session: Session, webhook: Webhook) -> None:
    """Set the cursors of a new webhook to the last events of the searches that there are; those to come begin at 0."""
    searches = select(literal(webhook.id), Search.id, Search.last_event, literal(0), database_time())
    own = Search.owner == webhook.owner if webhook.search_id is None else Search.id == webhook.search_id
    columns = ["webhook_id", "search_id", "delivered", "failures", "not_before"]
    session.execute(insert(Delivery).from_select(columns, searches.where(own)))


def _behind() -> Select[str, str, int, datetime]:
    of_both = and_(Delivery.webhook_id == Webhook.id, Delivery.search_id == Search.id)
    return (
        select(
            Webhook.id.label("webhook_id"),
            Search.id.label("search_id"),
            func.coalesce(Delivery.failures, 0).label("failures"),
            func.coalesce(Delivery.not_before, Search.created_at).label("not_before"),
        )
        .select_from(Webhook)
        .join(Search, literal(True))
        .outerjoin(Delivery, of_both)
        .where(
            Search.last_event > func.coalesce(Delivery.delivered, 0),
            or_(Delivery.not_before.is_(None), Delivery.not_before <= database_time()),
        )
    )


def _delivery(session: Session, cursor: Cursor) -> Delivery:
    """The cursor's row, locked; that of a search that is newer than the webhook begins at 0."""
    delivery = session.get(Delivery, (cursor.webhook_id, cursor.search_id), with_for_update=True)
    if delivery is None:
        delivery = Delivery(
            webhook_id=cursor.webhook_id,
            search_id=cursor.search_id,
            delivered=0,
            failures=0,
            not_before=now(session),
        )
        session.add(delivery)
    return delivery


def _notices(session: Session, webhook: Webhook, search: Search, after: int) -> tuple[Notice, ...]:
    query = (
        select(Event)
        .where(
            Event.search_id == search.id,
            Event.number > after,
            Event.number <= search.last_event,
            Event.kind.in_(webhook.kinds),
        )
        .order_by(Event.number)
        .limit(_EVENTS_AT_ONCE)
    )
    return tuple(Notice.of(event) for event in session.scalars(query))
