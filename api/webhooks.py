"""Webhooks: have the events of your searches sent to a URL of yours, signed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar

from fastapi import APIRouter, Depends, Path

from api.auth import Submitter
from api.deps import AppDatabase, AppSettings, Paging, Reading, Writing
from api.errors import responses
from api.idempotency import Idempotent
from api.schemas import ListOf, Schema
from einlayers.errors import FieldError
from service import addresses, webhooks
from service.errors import InvalidValue
from service.events import Kind

router = APIRouter(prefix="/v1", tags=["webhooks"])

WebhookId = Annotated[str, Path(max_length=32, pattern=r"^[0-9a-f]{1,32}$", examples=["0c1e5a7b93d2"])]

_SEARCH_ID = re.compile(r"[0-9a-f]{1,32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRequest:
    """Where to send which kinds of events: of one search, or of all of yours, those to come too.

    Raises:
        FieldError: the URL is none that events can be sent to, a kind comes twice, or there is none.
    """

    url: str
    search_id: str | None = None
    kinds: tuple[Kind, ...] = ("search.state",)

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        addresses.parse(self.url)
        if self.search_id is not None and _SEARCH_ID.fullmatch(self.search_id) is None:
            raise FieldError("search_id", expected="the id of a search, such as 5f0c2ab91d3e", got=self.search_id)
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise FieldError("kinds", expected="at least one kind of events, and none twice", got=self.kinds)


class WebhookResource(Schema):
    """A webhook; without ``search_id`` it is told of all searches of its owner."""

    id: str
    url: str
    search_id: str | None
    kinds: Sequence[Kind]
    created_at: datetime


class NewWebhook(WebhookResource):
    """A new webhook, and the secret that signs what it is sent: keep it, it is not shown again."""

    secret: str


class DeliveryResource(Schema):
    """How far a webhook has been told of a search; how often the next event failed, why, and when it is tried again."""

    search_id: str
    delivered: int
    failures: int
    last_error: str | None
    not_before: datetime


class WebhookDetail(WebhookResource):
    """A webhook, and how far it has been told of its searches: at most a hundred, first those where it fails."""

    deliveries: Sequence[DeliveryResource]


class AnswerResource(Schema):
    """What a receiver answered to a test, or why there was no answer; ``ok``: it answered with 2xx."""

    ok: bool
    status: int | None
    seconds: float
    error: str | None


async def _reachable(request: WebhookRequest, caller: Submitter, settings: AppSettings) -> WebhookRequest:
    """A name may take seconds to look up: that happens before the transaction, and for known callers only."""
    try:
        await addresses.resolve(addresses.parse(request.url), allow_private=settings.webhooks_to_private_addresses)
    except FieldError as error:
        raise InvalidValue("", error) from error
    return request


@router.post("/webhooks", status_code=201, responses=responses(400, 403, 404, 409, 413, 415, 422))
def add_webhook(
    request: Annotated[WebhookRequest, Depends(_reachable)],
    session: Writing,
    caller: Submitter,
    idempotent: Idempotent,
) -> NewWebhook:
    """Have events sent to a URL of yours from now on. Keep the secret: it signs them, and is not shown again.

    Each is a POST of the JSON that `GET /v1/searches/{id}/events` sends as `data`, at least once, in order within a search.
    `Einsearch-Signature` is `v1=` and the HMAC-SHA256, in hex, of `Einsearch-Timestamp`, a full stop and the body.
    `Einsearch-Delivery` is the same when an event is sent again. What is not answered with 2xx within 10 seconds is.
    """

    def register() -> NewWebhook:
        made = webhooks.register(session, caller, url=request.url, kinds=request.kinds, search_id=request.search_id)
        return NewWebhook.model_validate(made)

    return idempotent.run(session, caller.owner, register)


@router.get("/webhooks", responses=responses(400, 403, 422))
def list_webhooks(session: Reading, page: Paging, caller: Submitter) -> ListOf[WebhookResource]:
    """Your webhooks, newest first."""
    found = webhooks.listing(session, caller, page)
    items = [WebhookResource.model_validate(webhook) for webhook in found.items]
    return ListOf[WebhookResource](items=items, next_page_token=found.next_token)


@router.get("/webhooks/{webhook_id}", responses=responses(403, 404, 422))
def get_webhook(webhook_id: WebhookId, session: Reading, caller: Submitter) -> WebhookDetail:
    """One of your webhooks, and how far it has been told of its searches."""
    webhook = WebhookResource.model_validate(webhooks.by_id(session, caller, webhook_id))
    deliveries = [DeliveryResource.model_validate(each) for each in webhooks.deliveries(session, webhook_id)]
    return WebhookDetail(**webhook.__dict__, deliveries=deliveries)


@router.delete("/webhooks/{webhook_id}", status_code=204, responses=responses(403, 404, 422))
def remove_webhook(webhook_id: WebhookId, session: Writing, caller: Submitter) -> None:
    """Send nothing more to a webhook of yours."""
    webhooks.remove(session, caller, webhook_id)


@router.post("/webhooks/{webhook_id}:test", responses=responses(403, 404, 422))
async def try_webhook(
    webhook_id: WebhookId, database: AppDatabase, settings: AppSettings, caller: Submitter
) -> AnswerResource:
    """Send a signed event of kind `test` now, and say what came of it."""
    allow_private = settings.webhooks_to_private_addresses
    answer = await webhooks.send_test(database, caller, webhook_id, allow_private=allow_private)
    return AnswerResource(ok=answer.ok, status=answer.status, seconds=answer.seconds, error=answer.why_not)
