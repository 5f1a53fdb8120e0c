"""A limit on the size of request bodies, kept while they arrive: the announced length may be wrong or absent."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 1_000_000
"""The largest search that makes sense has a few kilobytes."""


class BodyLimit:
    """Refuses bodies beyond ``MAX_BODY_BYTES`` with 413."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting what arrives."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, f"expected a body of at most {MAX_BODY_BYTES:,} bytes")
            return message

        await self._app(scope, counted, send)
