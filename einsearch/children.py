"""The processes that the embedded service looks after: each the leader of a group of its own, with a log of its own."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_STOP_WITHIN = 15.0
_LONGEST_PAUSE = 10.0
_WELL_AFTER = 60.0
"""Seconds after which a process that dies has not died of its start."""


class CannotStart(Exception):
    """The service cannot be started; the message says why and what to do."""


@dataclass(slots=True)
class Child:
    """A process that we look after: how it is started, its log, how often it has died, when it may start again."""

    name: str
    command: list[str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    deaths: int = 0
    not_before: float | None = None
    log_begin: int = 0
    begin: float = 0.0

    @property
    def status(self) -> int | None:
        """What it ended with; None while it runs."""
        assert self.process is not None, "it was never started"
        return self.process.poll()

    def spawn(self, environment: Mapping[str, str]) -> None:
        """Start it, again if need be; it ends with us, because we hold its standard input."""
        self.not_before = None
        self.begin = time.monotonic()
        with self.log.open("ab") as log:
            self.log_begin = log.tell()
            self.process = subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we tell the others in good order
            )

    def await_up(self, is_up: Callable[[], bool], within: float) -> None:
        """Return as soon as it is up.

        Raises:
            CannotStart: it has ended, or the time is over; the message has the end of what it said.
        """
        deadline = time.monotonic() + within
        while not is_up():
            if self.status is not None or time.monotonic() > deadline:
                raise CannotStart(self._why_not_up())
            time.sleep(0.1)

    def schedule(self) -> None:
        """After a death: let it start again after a pause, which grows while it dies young."""
        now = time.monotonic()
        self.deaths = 0 if now - self.begin > _WELL_AFTER else self.deaths
        self.not_before = now + min(_LONGEST_PAUSE, 0.2 * 2**self.deaths)
        self.deaths += 1

    def kill(self) -> None:
        """End it at once; it will be started again."""
        assert self.process is not None, "it was never started"
        self.process.kill()

    def kill_rest(self) -> None:
        """End what a dead child has left behind: it was the leader of a group of its own."""
        assert self.process is not None, "it was never started"
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _why_not_up(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self.log_begin)
            said = log.read().decode(errors="replace").strip()
        if self.status == 1 and said and "\n" not in said:
            return said  # a refusal in one line, made for the reader
        end = "\n".join(said.splitlines()[-15:])
        return f"{self.name} did not start; the end of {self.log} says:\n{end}"


def end(children: Iterable[Child]) -> None:
    """End some processes at the same time, and wait for all of them."""
    started = [child for child in children if child.process is not None]
    for child in started:
        assert child.process is not None
        child.process.terminate()
    for child in started:
        _reap(child)


def _reap(child: Child) -> None:
    process = child.process
    assert process is not None
    try:
        process.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    child.kill_rest()
    if process.stdin:
        process.stdin.close()
