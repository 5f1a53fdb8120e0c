"""What a Ray cluster has, and what of it is free, asked at most once a second; and no question waits for ever."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from search.spec import Resources
from workers.pool import PoolGone

T = TypeVar("T")

_ANSWERS_WITHIN = 10.0
"""Seconds that a cluster has to answer a question; Ray itself waits for a minute and then ends the process."""

_FRESH = 1.0
"""Seconds for which an answer is good."""

_LAG = 2.0
"""Seconds by which Ray's account of what is free may lag behind what was started and ended."""


class Cluster:
    """The nodes and the free resources of the cluster that this process is connected to."""

    def __init__(self) -> None:
        self._nodes: list[Mapping[str, float]] = []
        self._available: Mapping[str, float] = {}
        self._asked = -1e9
        self._changes: list[tuple[float, Resources, int]] = []

    def largest(self, kind: str) -> float:
        """The most that a single node has of a kind of resource.

        Raises:
            PoolGone: the cluster does not answer.
        """
        self._ask()
        return max((node.get(kind, 0.0) for node in self._nodes), default=0.0)

    def missing(self, resources: Resources) -> str | None:
        """Why nothing with these resources can run on any node, or None where it can.

        Raises:
            PoolGone: the cluster does not answer.
        """
        self._ask()
        if any(_fits(resources, node) for node in self._nodes):
            return None
        asked = f"a trial asks for {resources.cpus:g} CPUs and {resources.gpus:g} GPUs"
        if _fits(resources, self._total()):
            return f"{asked}, all on one machine; the cluster has them only on several"
        offered = ", ".join(f"{self._total().get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
        return f"{asked}; the cluster has {offered}"

    def room(self, resources: Resources, *, beside: Sequence[Resources], freed: Sequence[Resources] = ()) -> int:
        """How often these resources are free, now or once ``freed`` is; ``beside`` is what the caller holds and keeps.

        Raises:
            PoolGone: the cluster does not answer.
        """
        self._ask()
        if not any(_fits(resources, node) for node in self._nodes):
            return 0
        unheld = dict(self._total())
        for held in beside:
            _add(unheld, held, -1)
        free = dict(self._available)
        for at, changed, sign in self._changes:
            if at > self._asked - _LAG:
                _add(free, changed, sign)
        for given in freed:
            _add(free, given, 1)
        return min(_times(resources, unheld), _times(resources, free))

    def took(self, resources: Resources) -> None:
        """Something with these resources was started, which Ray's account may not show yet."""
        self._changes.append((time.monotonic(), resources, -1))

    def gave_back(self, resources: Resources) -> None:
        """Something with these resources was ended, which Ray's account may not show yet."""
        self._changes.append((time.monotonic(), resources, 1))

    def _total(self) -> dict[str, float]:
        return {kind: sum(node.get(kind, 0.0) for node in self._nodes) for kind in ("CPU", "GPU")}

    def _ask(self) -> None:
        if time.monotonic() < self._asked + _FRESH:
            return
        nodes: list[dict[str, Any]] = in_time("list its nodes", ray.nodes)
        self._nodes = [node["Resources"] for node in nodes if node["Alive"]]
        self._available = in_time("say what is free", ray.available_resources)
        self._asked = time.monotonic()
        self._changes = [change for change in self._changes if change[0] > self._asked - _LAG]


class _Question(threading.Thread, Generic[T]):
    """A call on a thread that the process does not wait for at its end."""

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.answers: list[T] = []
        self.error: Exception | None = None

    def run(self) -> None:
        """Make the call."""
        try:
            self.answers.append(self._call())
        except (RayError, RuntimeError, OSError, ValueError) as error:
            self.error = error


def in_time(what: str, call: Callable[[], T], *, seconds: float = _ANSWERS_WITHIN) -> T:
    """What ``call``, a question to the cluster, returns.

    Raises:
        PoolGone: it raised an error of Ray's, or did not return in time.
        ValueError: the call raised it: there is no such name, or there is one already.
    """
    question = _Question(call)
    question.start()
    question.join(seconds)
    if isinstance(question.error, ValueError):
        raise question.error
    if not question.answers:
        why = question.error or f"no answer within {seconds:g} s"
        raise PoolGone(f"the cluster did not {what}: {why}") from question.error
    return question.answers[0]


def _fits(resources: Resources, capacity: Mapping[str, float]) -> bool:
    return _times(resources, capacity) > 0


def _times(resources: Resources, capacity: Mapping[str, float]) -> int:
    """How often they fit; resources ask for something."""
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
    return max(0, min(int(capacity.get(kind, 0) / n + 1e-9) for kind, n in wanted.items() if n))


def _add(free: dict[str, float], resources: Resources, sign: int) -> None:
    free["CPU"] = free.get("CPU", 0.0) + sign * resources.cpus
    free["GPU"] = free.get("GPU", 0.0) + sign * resources.gpus
