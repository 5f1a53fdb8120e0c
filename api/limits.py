"""Limits on what arrives: the size of a request body, and how often one caller may ask."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import TooMany

MAX_BODY_BYTES = 1_000_000
"""The largest search that makes sense has a few kilobytes."""


class BodyLimit:
    """Refuses bodies beyond ``MAX_BODY_BYTES`` with 413.

    What arrives is counted, because the announced length may be wrong or absent.
    """

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


@dataclass(slots=True)
class _Bucket:
    """How many requests are left at a time; ``size`` of them come back in a minute, and no more than those are kept."""

    left: float
    at: float
    size: int

    def left_at(self, time: float) -> float:
        return min(self.size, self.left + (time - self.at) * self.size / 60)


class RateLimit:
    """A bucket of tokens for each caller: it holds those of a minute, each request takes one, and they come back evenly.

    The buckets are in the memory of this process: where the API runs several times, a caller may ask as often of each.
    Full buckets say nothing and are dropped, so that there are never many more than callers in a minute.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._sweep_at = _SWEEP_AT_LEAST
        self._lock = Lock()  # endpoints run in threads

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._buckets)

    def take(self, caller: str, per_minute: int) -> None:
        """Let one request of a caller pass.

        Raises:
            TooMany: the caller has asked too often.
        """
        with self._lock:
            at = self._clock()
            left = self._left(caller, per_minute, at)
            if left < _ONE:
                raise TooMany(
                    f"expected at most {per_minute} requests a minute; ask again after the seconds in Retry-After",
                    retry_after=(_ONE - left) * 60 / per_minute,
                )
            self._buckets[caller] = _Bucket(left=max(0.0, left - 1), at=at, size=per_minute)

    def _left(self, caller: str, per_minute: int, at: float) -> float:
        bucket = self._buckets.get(caller)
        if bucket is not None:
            return min(per_minute, bucket.left_at(at))
        if len(self._buckets) >= self._sweep_at:
            self._sweep(at)
        return per_minute

    def _sweep(self, at: float) -> None:
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if bucket.left_at(at) < bucket.size}
        self._sweep_at = max(_SWEEP_AT_LEAST, 2 * len(self._buckets))


_SWEEP_AT_LEAST = 1000
_ONE = 1 - 1e-6  # what comes back in exactly the time that was told is one, rounded or not
