"""The pool on a Ray cluster: slots are detached, named actors that outlive the runner; a new runner adopts them.

Facts about Ray that shape this (measured with 2.60): a small ``max_task_retries`` does not reliably run a call again after
its process died, so calls are never retried here and the database queues the trial again; a named actor and its running
call survive the death of the driver that made them; a method's ``options(name=...)`` is what the dashboard shows.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from search.spec import Resources
from search.trial import Report
from workers.pool import Assignment, Event, Finished, Lost, Progress
from workers.slot import Slot, SlotView
from workers.workspace import Workspace

NAMESPACE = "einsearch"
"""The Ray namespace of the slots; two services that share a cluster need two."""

_PREFIX = "slot-"
_REPORT_EVERY = 0.5
"""Seconds between looks at how far running trials have got."""

_ADOPT_WITHIN = 15.0
"""Seconds that a slot has to say what it runs when a new runner asks; one that does not answer is replaced."""

logger = logging.getLogger(__name__)

SlotActor: Any = ray.remote(concurrency_groups={"control": 4})(Slot)  # type: ignore[call-overload]  # Ray types no options


@dataclass(slots=True)
class _SlotHandle:
    """What the pool knows of one slot; a slot that is ``starting`` has not yet answered since it was made or died."""

    actor: Any
    resources: Resources
    starting: Any = None
    key: str | None = None
    run: Any = None
    look: Any = None
    last_report: Report | None = None


class RayPool:
    """Slots on the cluster at ``address``. Makes them as they are wanted, one per trial at a time."""

    def __init__(self, workspace: Workspace, *, address: str, namespace: str = NAMESPACE) -> None:
        self._workspace = workspace
        self._namespace = namespace
        self._slots: dict[str, _SlotHandle] = {}
        self._next_look = 0.0
        self._capacity: dict[str, float] = {}
        self._capacity_until = 0.0
        if not ray.is_initialized():
            ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING)
        self._adopt()

    def assignments(self) -> Mapping[str, str]:
        """See ``Pool.assignments``; looks at idle slots again, for what an earlier runner submitted with its last breath."""
        for handle in self._slots.values():
            if handle.key is None and handle.starting is None:
                self._take_late_call_over(handle)
        return {handle.key: name for name, handle in self._slots.items() if handle.key}

    def reserve(self, resources: Resources, *, wanted: int) -> str | None:
        """See ``Pool.reserve``."""
        starting = 0
        for name, handle in self._slots.items():
            if handle.resources == resources and handle.key is None:
                if handle.starting is None:
                    return name
                starting += 1
        for _ in range(wanted - starting):
            if not self._make_room(resources):
                break
            self._start(resources)
        return None

    def missing(self, resources: Resources) -> str | None:
        """See ``Pool.missing``."""
        capacity = self._cluster_capacity()
        if _fits(resources, capacity):
            return None
        offered = ", ".join(f"{capacity.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
        return f"a trial asks for {resources.cpus:g} CPUs and {resources.gpus:g} GPUs; the cluster has {offered}"

    def submit(self, slot: str, assignment: Assignment) -> None:
        """See ``Pool.submit``."""
        handle = self._slots[slot]
        assert handle.key is None, "the slot was not reserved"
        handle.key, handle.last_report = assignment.key, None
        handle.run = handle.actor.run.options(name=assignment.label).remote(assignment.key, assignment.spec)

    def stop(self, key: str) -> None:
        """See ``Pool.stop``."""
        for handle in self._slots.values():
            if handle.key == key:
                handle.actor.stop.options(concurrency_group="control").remote(key)

    def wait(self, timeout: float) -> Sequence[Event]:
        """See ``Pool.wait``."""
        self._look_at_running()
        pending = [ref for handle in self._slots.values() for ref in (handle.starting, handle.run, handle.look) if ref]
        if not pending:
            time.sleep(timeout)
            return []
        done, rest = ray.wait(pending, num_returns=1, timeout=timeout)
        if done and rest:
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        events: list[Event] = []
        for name, handle in list(self._slots.items()):
            events += self._collect(name, handle, set(done))
        return events

    def close(self) -> None:
        """See ``Pool.close``."""
        ray.shutdown()

    def slots(self) -> list[str]:
        """The names of the slots that there are."""
        return list(self._slots)

    def remove(self, name: str) -> None:
        """End a slot, with whatever it runs, and free its resources."""
        ray.kill(self._slots.pop(name).actor)

    def _collect(self, name: str, handle: _SlotHandle, done: set[Any]) -> list[Event]:
        events: list[Event] = []
        if handle.look in done:
            events += self._progress(handle)
        if handle.run in done:
            events.append(self._end(name, handle))
        elif handle.starting in done:
            self._started(name, handle)
        return events

    def _progress(self, handle: _SlotHandle) -> list[Event]:
        look, handle.look = handle.look, None
        try:
            view: SlotView = ray.get(look)
        except RayError:
            return []  # the end of the run tells what happened
        if handle.key is None or view.key != handle.key or view.report in (None, handle.last_report):
            return []
        assert view.report is not None
        handle.last_report = view.report
        return [Progress(key=handle.key, report=view.report)]

    def _end(self, name: str, handle: _SlotHandle) -> Event:
        assert handle.key is not None
        run, key = handle.run, handle.key
        handle.run = handle.look = handle.key = None
        try:
            return Finished(key=key, outcome=ray.get(run))
        except (RayError, LookupError) as error:
            # The process is gone and Ray starts it anew; it takes trials again once it answers.
            handle.starting = self._view(handle.actor)
            logger.warning("lost %s on %s: %s", key, name, error)
            return Lost(key=key, reason=_first_line(error))

    def _started(self, name: str, handle: _SlotHandle) -> None:
        try:
            ray.get(handle.starting)
            handle.starting = None
        except RayError as error:
            logger.warning("%s did not start: %s", name, _first_line(error))
            self.remove(name)

    def _look_at_running(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _REPORT_EVERY
        for handle in self._slots.values():
            if handle.key and handle.look is None:
                handle.look = self._view(handle.actor)

    def _adopt(self) -> None:
        """Take over the slots that an earlier runner left on the cluster, with what they run."""
        named = ray.util.list_named_actors(all_namespaces=True)
        names = [a["name"] for a in named if a["namespace"] == self._namespace and a["name"].startswith(_PREFIX)]
        actors = {name: ray.get_actor(name, namespace=self._namespace) for name in names}
        views = {name: self._view(actor) for name, actor in actors.items()}
        deadline = time.monotonic() + _ADOPT_WITHIN
        for name, actor in actors.items():
            handle = _SlotHandle(actor=actor, resources=Resources())
            self._slots[name] = handle
            try:
                view: SlotView = ray.get(views[name], timeout=max(0.0, deadline - time.monotonic()))
            except (RayError, GetTimeoutError) as error:
                logger.warning("%s cannot be adopted: %s", name, _first_line(error))
                self.remove(name)
                continue
            handle.resources = view.resources
            self._take_over(handle, view)

    def _take_late_call_over(self, handle: _SlotHandle) -> None:
        try:
            view: SlotView = ray.get(self._view(handle.actor), timeout=_ADOPT_WITHIN)
        except (RayError, GetTimeoutError):
            return  # whether the slot lives is found out when it is used
        if view.outcome is None:
            self._take_over(handle, view)

    def _take_over(self, handle: _SlotHandle, view: SlotView) -> None:
        """Wait for the end of what a slot holds, if it holds anything; an end that was told before is told again."""
        if view.key is not None:
            handle.key = view.key
            handle.run = handle.actor.follow.options(concurrency_group="control").remote(view.key)

    def _start(self, resources: Resources) -> None:
        number = next(n for n in range(len(self._slots) + 1) if f"{_PREFIX}{n}" not in self._slots)
        actor = SlotActor.options(
            name=f"{_PREFIX}{number}",
            namespace=self._namespace,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
        ).remote(resources, self._workspace)
        self._slots[f"{_PREFIX}{number}"] = _SlotHandle(actor=actor, resources=resources, starting=self._view(actor))

    def _view(self, actor: Any) -> Any:
        return actor.view.options(concurrency_group="control").remote()

    def _make_room(self, resources: Resources) -> bool:
        """Whether one more slot fits, after idle slots of other shapes were given up where that makes the room."""
        free = dict(self._cluster_capacity())
        for handle in self._slots.values():
            _take(free, handle.resources, -1)
        spare = [n for n, h in self._slots.items() if h.key is None and not h.starting and h.resources != resources]
        given_up: list[str] = []
        while spare and not _fits(resources, free):
            given_up.append(spare.pop())
            _take(free, self._slots[given_up[-1]].resources, 1)
        if not _fits(resources, free):
            return False
        for name in given_up:
            self.remove(name)
        return True

    def _cluster_capacity(self) -> dict[str, float]:
        if time.monotonic() >= self._capacity_until:
            self._capacity = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
            self._capacity_until = time.monotonic() + 1.0
        return self._capacity


def _fits(resources: Resources, capacity: Mapping[str, float]) -> bool:
    return resources.cpus <= capacity.get("CPU", 0) + 1e-9 and resources.gpus <= capacity.get("GPU", 0) + 1e-9


def _take(free: dict[str, float], resources: Resources, sign: int) -> None:
    free["CPU"] = free.get("CPU", 0.0) + sign * resources.cpus
    free["GPU"] = free.get("GPU", 0.0) + sign * resources.gpus


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
