"""Waiting for something to become true, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 120.0
"""Far beyond what anything here takes: reaching it means that it will never happen."""


def wait_for(get: Callable[[], T], *, until: Callable[[T], object] = bool, what: str, within: float = DEADLINE) -> T:
    """The first value of ``get()`` that satisfies ``until``.

    Raises:
        TimeoutError: there was none within so many seconds; the message holds the last value.
    """
    end, pause = time.monotonic() + within, 0.005
    while True:
        value = get()
        if until(value):
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"waited {within:g} s for {what}; the last value is {value!r}")
        # Longer and longer: whoever looks all the time takes the time of what is waited for.
        time.sleep(pause)
        pause = min(0.2, 1.5 * pause)
