"""``Idempotent``: an endpoint that makes something makes it once, however often the request is sent with one key."""

import threading
from collections.abc import Callable
from typing import Annotated, TypeVar, cast

from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from api.schemas import Schema
from service.idempotency import Answer, InFlight, KeyedRequest, answer_once, fingerprint

Resource = TypeVar("Resource", bound=Schema)

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern="^[ -~]+$",
        description="Of your choice, new for every new request. The same request with the same key is answered the same,"
        " with the header `Idempotency-Replayed: true`, and makes nothing anew, for 24 hours.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]


class Flights:
    """The keyed requests that this process is answering."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flying: set[tuple[str, str]] = set()

    def begin(self, session: Session, owner: str, key: str) -> None:
        """Count a key as flying until the transaction of ``session`` has ended.

        Raises:
            InFlight: it flies already.
        """
        with self._lock:
            if (owner, key) in self._flying:
                raise InFlight(key)
            self._flying.add((owner, key))

        @event.listens_for(session, "after_transaction_end")
        def end(session: Session, transaction: SessionTransaction) -> None:
            if transaction.parent is None:
                self._flying.discard((owner, key))


class IdempotentRequest:
    """A request that may have been sent, and answered, before."""

    def __init__(self, request: Request, key: str | None, body: bytes) -> None:
        self._request = request
        self._key = key
        self._body = body

    def run(self, session: Session, owner: str, make: Callable[[], Resource]) -> Resource:
        """The resource that ``make`` makes in the transaction of ``session``, or the answer that told of it before.

        Its ``Location`` is its id below the plural that was posted to: every resource has its place there.

        Raises:
            KeyReused: the owner has used the key for another request.
            InFlight: the first request with this key is still being answered.
        """
        if self._key is None:
            answer = self._answer(make())
        else:
            self._request.app.state.flights.begin(session, owner, self._key)
            digest = fingerprint(self._request.method, self._request.url.path, self._body)
            keyed = KeyedRequest(owner=owner, key=self._key, fingerprint=digest)
            answer = answer_once(session, keyed, lambda: self._answer(make()))
        # A response is sent as it is; the endpoint is annotated with what is in it, for the documentation.
        return cast(Resource, _response(answer))

    def _answer(self, resource: Schema) -> Answer:
        route: APIRoute = self._request.scope["route"]
        body = resource.model_dump(mode="json")
        location = f"/v1/{route.path.rpartition('/')[2]}/{body['id']}"
        return Answer(status=route.status_code or 200, location=location, body=body)


def _response(answer: Answer) -> JSONResponse:
    headers = {}
    if answer.location is not None:
        headers["Location"] = answer.location
    if answer.replayed:
        headers["Idempotency-Replayed"] = "true"
    return JSONResponse(answer.body, status_code=answer.status, headers=headers)


async def _idempotent(request: Request, key: Key = None) -> IdempotentRequest:
    return IdempotentRequest(request, key, b"" if key is None else await request.body())


Idempotent = Annotated[IdempotentRequest, Depends(_idempotent)]
