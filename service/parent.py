"""Processes that one command started end with it, however it ends."""

import os
import signal
import sys
import threading

LEASH = "EINSEARCH_STOP_AT_END_OF_INPUT"
"""Set by a parent that holds our standard input open for as long as it lives."""


def stop_with_parent() -> None:
    """Where a parent holds the leash, send ourselves SIGTERM once it is gone: a pipe is closed even by kill -9."""
    if os.environ.get(LEASH):
        threading.Thread(target=_wait_for_end_of_input, daemon=True, name="leash").start()


def _wait_for_end_of_input() -> None:
    # The file descriptor itself: a buffered reader could not be torn down while it waits.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
