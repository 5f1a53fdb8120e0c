"""Requests that may be sent twice and are carried out once (draft-ietf-httpapi-idempotency-key-header).

The answer is stored under the sender's key in the transaction that makes what it tells of: there is never one without the
other. A refused request raises, which rolls both back, so that it can be corrected and sent again under the same key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from types import MappingProxyType

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.clock import now
from service.errors import ServiceError
from service.models import IdempotencyKey

REMEMBERED = timedelta(hours=24)
"""For how long a request may be repeated."""


class KeyReused(ServiceError):
    """The key has been used for another request."""

    status_code = 422
    code = "idempotency_key_reused"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"expected a new Idempotency-Key for a new request, got {key[:80]!r}, which has answered another one:"
            " another method, path or body; send the same request again, byte by byte, or choose another key"
        )


class InFlight(ServiceError):
    """The first request with this key is still being answered."""

    status_code = 409
    code = "in_flight"
    headers = MappingProxyType({"Retry-After": "1"})

    def __init__(self, key: str) -> None:
        super().__init__(f"the request with the Idempotency-Key {key[:80]!r} is being answered; ask again in a second")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedRequest:
    """A request, by the key that its sender chose, and a fingerprint by which another one is told apart."""

    owner: str
    key: str
    fingerprint: str

    @property
    def lock(self) -> int:
        """Its number among the advisory locks of Postgres."""
        digest = sha256(f"{self.owner}\0{self.key}".encode()).digest()
        return int.from_bytes(digest[:8], signed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request was answered, in JSON; ``replayed``: at an earlier time."""

    status: int
    location: str | None
    body: Mapping[str, object]
    replayed: bool = False


def fingerprint(method: str, path: str, body: bytes) -> str:
    """What is the same for two requests if and only if they ask for the same."""
    return sha256(b"\n".join([method.encode(), path.encode(), body])).hexdigest()


def answer_once(session: Session, request: KeyedRequest, make: Callable[[], Answer]) -> Answer:
    """The answer that the request got before, or the one that is made now.

    On SQLite, with its one writer at a time, a second request waits for the first one, and gets the same answer.

    Raises:
        KeyReused: the key has answered another request.
        InFlight: another transaction is answering this very key.
    """
    _lock(session, request)
    stored = session.get(IdempotencyKey, (request.owner, request.key))
    if stored is not None:
        return _replay(stored, request)
    answer = make()
    session.add(
        IdempotencyKey(
            owner=request.owner,
            key=request.key,
            fingerprint=request.fingerprint,
            status=answer.status,
            location=answer.location,
            answer=dict(answer.body),
            created_at=now(session),
        )
    )
    return answer


def forget_old(session: Session) -> None:
    """Delete what is older than ``REMEMBERED``: its keys may be used anew."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < now(session) - REMEMBERED))


def _lock(session: Session, request: KeyedRequest) -> None:
    if session.get_bind().dialect.name == "postgresql" and not session.scalar(
        select(func.pg_try_advisory_xact_lock(request.lock))
    ):
        raise InFlight(request.key)


def _replay(stored: IdempotencyKey, request: KeyedRequest) -> Answer:
    if stored.fingerprint != request.fingerprint:
        raise KeyReused(request.key)
    return Answer(status=stored.status, location=stored.location, body=stored.answer, replayed=True)
