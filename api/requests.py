"""Every request has an id: in its answer, in its problem, in every line that is logged meanwhile. And a line of its own."""

import logging
import re
import secrets
import time
from http import HTTPMethod
from urllib.parse import quote

from anyio import BrokenResourceError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs

REQUEST_ID = "X-Request-Id"

_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE = frozenset({HTTPMethod.GET, HTTPMethod.HEAD, HTTPMethod.OPTIONS})

logger = logging.getLogger(__name__)


def request_id(scope: Scope) -> str:
    """The id of a request: the one that it brought, if that is 1 to 64 of ``A-Z a-z 0-9 . _ -``, or a random one."""
    state = scope.setdefault("state", {})
    if "request_id" not in state:
        brought = Headers(scope=scope).get(REQUEST_ID, "")
        state["request_id"] = brought if _ACCEPTED.fullmatch(brought) else secrets.token_hex(8)
    identifier: str = state["request_id"]
    return identifier


class RequestIds:
    """Adds the id to the answer and to the lines that are logged; logs a line about each request that changes something.

    The line names the owner where ``request.state.owner`` was set. Requests that only read are told of at DEBUG.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identifier = request_id(scope)
        # For the whole task, which is the request's own: what goes wrong is logged outside of the middleware.
        logs.bind(request_id=identifier)
        status, started = 500, time.perf_counter()

        async def identified(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = identifier
            await send(message)

        try:
            await self._app(scope, receive, identified)
        except* BrokenResourceError:
            pass  # FastAPI was handing a client, who has gone, the next event of a stream: there is nobody to tell
        finally:
            _log(scope, status, time.perf_counter() - started)


def _log(scope: Scope, status: int, seconds: float) -> None:
    fields = {
        "method": scope["method"],
        "path": quote(scope["path"])[:200],
        "status": status,
        "ms": round(1000 * seconds, 1),
    }
    line = "%(method)s %(path)s %(status)d in %(ms)g ms"
    if "owner" in scope["state"]:
        fields["owner"] = scope["state"]["owner"]
        line += " for %(owner)s"
    level = logging.DEBUG if scope["method"] in _SAFE else logging.INFO
    logger.log(level, line, fields, extra=fields)
