"""What is told of events, and how it is sent: JSON, signed, to one receiver, once, within ten seconds.

A receiver computes ``signature`` anew of the headers ``Einsearch-Timestamp`` and the body as it came, compares, and refuses
what is old. ``Einsearch-Delivery`` is the same when an event is sent again.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import version
from ssl import SSLContext
from typing import Any

import httpx2
from pydantic import TypeAdapter

from einlayers.errors import shorten
from service.addresses import CheckedTransport
from service.models import Event

TIMEOUT = 10.0
"""Seconds that a receiver has to answer in, everything counted."""

MAX_ANSWER_BYTES = 65_536

_CONNECT_SECONDS = 4.0
"""For one address, so that there is time left for the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """An event as it is told: its number within the search, what happened, to which search and trial, when, and the rest.

    A test of a webhook, of kind ``test``, has the number 0 and concerns no search.
    """

    number: int
    kind: str
    search_id: str | None
    trial_id: str | None
    at: datetime
    data: Mapping[str, Any]

    @classmethod
    def of(cls, event: Event) -> "Notice":
        """The notice of an event."""
        return cls(
            number=event.number,
            kind=event.kind,
            search_id=event.search_id,
            trial_id=event.trial_id,
            at=event.at,
            data=event.data,
        )

    def json(self) -> bytes:
        """As it is sent."""
        return NOTICES.dump_json(self)


NOTICES = TypeAdapter(Notice)
"""Reads and writes notices, and knows their schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """Where a webhook's notices go, and the secret that signs them."""

    webhook_id: str
    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The status that a receiver answered with, or in words why there is none; after so many seconds."""

    status: int | None
    seconds: float
    error: str | None

    @property
    def ok(self) -> bool:
        """Whether the receiver took it."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def why_not(self) -> str | None:
        """What was wrong, if anything was."""
        if self.ok or self.status is None:
            return self.error
        hint = "; redirects are not followed" if 300 <= self.status < 400 else ""
        return f"expected a status of 2xx, got {self.status}{hint}"


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """The value of ``Einsearch-Signature``: HMAC-SHA256 of the timestamp, a full stop and the body."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"v1={digest}"


async def send(receiver: Receiver, notice: Notice, *, allow_private: bool) -> Answer:
    """Post a notice, and say what came of it; nothing that a receiver does raises."""
    status, error, began = None, None, time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT), _posted(receiver, notice, allow_private) as response:
            # From here on the answer is known, whatever becomes of its body.
            status = response.status_code
            await _read_some(response)
    except TimeoutError:
        error = f"expected an answer within {TIMEOUT:g} seconds, got none"
    except httpx2.HTTPError as failure:
        error = shorten(f"{type(failure).__name__}: {failure}", 300)
    return Answer(status=status, seconds=time.monotonic() - began, error=None if status else error)


@asynccontextmanager
async def _posted(receiver: Receiver, notice: Notice, allow_private: bool) -> AsyncIterator[httpx2.Response]:
    body = notice.json()
    async with (
        # Proxies of the environment would connect to addresses that nobody checked.
        httpx2.AsyncClient(
            transport=CheckedTransport(_ssl_context(), allow_private=allow_private),
            timeout=httpx2.Timeout(TIMEOUT, connect=_CONNECT_SECONDS),
            follow_redirects=False,
            trust_env=False,
        ) as client,
        client.stream("POST", receiver.url, content=body, headers=_headers(receiver, notice, body)) as response,
    ):
        yield response


def _headers(receiver: Receiver, notice: Notice, body: bytes) -> dict[str, str]:
    timestamp = str(int(time.time()))
    return {
        "Content-Type": "application/json",
        "User-Agent": f"einsearch/{version('einsearch')}",
        "Connection": "close",
        "Einsearch-Event": notice.kind,
        "Einsearch-Delivery": f"{receiver.webhook_id}-{_name(notice)}",
        "Einsearch-Timestamp": timestamp,
        "Einsearch-Signature": signature(receiver.secret, timestamp, body),
    }


def _name(notice: Notice) -> str:
    """The same for an event that is sent again, and for no other; every test is one of its own."""
    if notice.search_id is None:
        return f"test-{int(notice.at.timestamp() * 1e6)}"
    return f"{notice.search_id}-{notice.number}"


async def _read_some(response: httpx2.Response) -> None:
    """Let the receiver finish its answer, if that is short; as it comes, so that nothing is unpacked."""
    size = 0
    with suppress(httpx2.HTTPError):
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size >= MAX_ANSWER_BYTES:
                return


@cache
def _ssl_context() -> SSLContext:
    # Reading the certificates takes longer than a request.
    return httpx2.create_ssl_context()
