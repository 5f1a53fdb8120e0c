"""How long the client keeps asking: pauses that grow, a limit, and what the service itself asks for with ``Retry-After``."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds for which a call is tried again where asking twice does no harm.

    ``once_met``: after the service has answered this client, as it will be back; ``at_first``: before, as it may not be
    there at all; ``when_limited``: for a service that answers 429 and says when to come back.
    """

    once_met: float = 30.0
    at_first: float = 4.0
    when_limited: float = 30.0
    first_pause: float = 0.1
    longest_pause: float = 2.0

    def pauses(self) -> Iterator[float]:
        """Pauses without an end, each about twice the one before; random, so that clients do not march in step."""
        pause = self.first_pause
        while True:
            yield random.uniform(pause / 2, pause)
            pause = min(2 * pause, self.longest_pause)


class Waiting:
    """What one call has waited so far."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._pauses = patience.pauses()
        self._begin = time.monotonic()
        self._limited = 0.0

    def for_service(self, *, met: bool, asked_for: float | None = None) -> bool:
        """Pause before another try, at least as long as was asked for; False at once where patience would end before."""
        pause = max(next(self._pauses), asked_for or 0.0)
        limit = self._patience.once_met if met else self._patience.at_first
        if time.monotonic() - self._begin - self._limited + pause > limit:
            return False
        time.sleep(pause)
        return True

    def for_limit(self, asked_for: float | None) -> bool:
        """Pause as long as a limit of requests asks for; False at once where that is too long, or not said."""
        if asked_for is None or self._limited + asked_for > self._patience.when_limited:
            return False
        pause = asked_for + next(self._pauses)
        self._limited += pause
        time.sleep(pause)
        return True
