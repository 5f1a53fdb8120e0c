"""The pool on a Ray cluster: slots are detached, named actors that outlive the runner; another runner adopts them.

Facts about Ray that shape this (measured with 2.60): a small ``max_task_retries`` does not reliably run a call again after
its process died, so calls are never retried here and the database queues the trial again; a named actor and its running
call survive the death of the driver that made them; a method's ``options(name=...)`` is what the dashboard shows. A process
that died is not started again as the same slot: a new slot has a new name, and an owner that is alive.
"""

import itertools
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError

from search.spec import Resources
from search.trial import Outcome, OutcomeKind, Report
from workers.cluster import Cluster, in_time
from workers.pool import Assignment, Event, Finished, Lost, PoolGone, Progress
from workers.slot import Refused, Slot, SlotView
from workers.workspace import Workspace

NAMESPACE = "einsearch"
"""The Ray namespace of the slots; two services that share a cluster need two."""

IDLE_SECONDS = 10.0
"""How long an idle slot is kept: torch is loaded there, but others may want the room."""

_PREFIX = "slot-"
_REPORT_EVERY = 0.5
"""Seconds between looks at how far running trials have got."""

_RECLAIM_EVERY = 2.0
"""Seconds between looks at the slots of others."""

_ADOPT_WITHIN = 5.0
"""Seconds that a slot has to say what it runs when another runner asks; one that does not answer is ended."""

_START_WITHIN = 60.0
"""Seconds that a new slot has to answer: the room that it was made for may have gone to another runner."""

_STOP_WITHIN = 1.0
"""Seconds that a trial has to end by itself when it is stopped."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _SlotHandle:
    """What the pool knows of one slot. Of a slot that is ``starting`` nothing was heard yet; ``run`` is the call that tells
    the end of ``key``; ``since`` is when it was made, or became idle."""

    actor: Any
    resources: Resources
    since: float = field(default_factory=time.monotonic)
    starting: Any = None
    key: str | None = None
    run: Any = None
    look: Any = None
    last_report: Report | None = None
    stop_until: float | None = None
    checkpointed: bool = False

    @property
    def refs(self) -> list[Any]:
        """The calls whose answers are waited for."""
        return [ref for ref in (self.starting, self.run, self.look) if ref is not None]


class RayPool:
    """Slots on the cluster at ``address``. Makes them as they are wanted, one per trial at a time.

    ``owner`` is the runner's id. A call that Ray does not answer in time, or answers with an error of its own, becomes
    ``PoolGone`` where it asks for the cluster, and ``Lost`` where it asks for one assignment.

    Raises:
        PoolGone: there is no cluster at ``address``.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        address: str,
        owner: str,
        namespace: str = NAMESPACE,
        slot_class: type[Slot] = Slot,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._workspace = workspace
        self._owner = owner
        self._namespace = namespace
        self._idle_seconds = idle_seconds
        self._slot_actor: Any = ray.remote(concurrency_groups={"control": 8})(slot_class)  # type: ignore[call-overload]  # Ray types no options
        self._slots: dict[str, _SlotHandle] = {}
        self._heirlooms: dict[Any, tuple[str, Any]] = {}
        self._told: list[Event] = []
        self._numbers = itertools.count()
        self._limit: int | None = None
        self._next_look = self._next_reclaim = 0.0
        _connect(address, namespace)
        self._cluster = Cluster()

    @property
    def num_slots(self) -> int:
        """See ``Pool.num_slots``."""
        return len(self._slots)

    def slots(self) -> list[str]:
        """The names of the slots that there are."""
        return list(self._slots)

    def assignments(self) -> Mapping[str, str]:
        """See ``Pool.assignments``."""
        return {handle.key: name for name, handle in self._slots.items() if handle.key}

    def alone(self, resources: Resources) -> Resources:
        """See ``Pool.alone``: whole GPUs; or, without any, the CPUs of the largest node."""
        if resources.gpus:
            return Resources(cpus=resources.cpus, gpus=max(1, math.ceil(resources.gpus)))
        return Resources(cpus=max(resources.cpus, min(self._cluster.largest("CPU"), 1024)))

    def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
        """See ``Pool.reserve``."""
        free = {n: handle for n, handle in self._slots.items() if handle.key is None and handle.resources == resources}
        for _ in range(wanted - len(free)):
            if not self._make_room(resources):
                break
            self._start(resources)
        return [name for name, handle in free.items() if handle.starting is None][:wanted]

    def room(self, resources: Resources) -> int:
        """See ``Pool.room``."""
        return self._cluster.room(resources, beside=[handle.resources for handle in self._slots.values()])

    def missing(self, resources: Resources) -> str | None:
        """See ``Pool.missing``."""
        return self._cluster.missing(resources)

    def keep_at_most(self, number: int | None) -> None:
        """See ``Pool.keep_at_most``."""
        self._limit = number
        self._end_surplus()

    def submit(self, slot: str, assignment: Assignment) -> None:
        """See ``Pool.submit``; where the slot was ended since it was reserved, the assignment is told as ``Lost``."""
        handle = self._slots.get(slot)
        if handle is None:
            self._told.append(Lost(key=assignment.key, reason=f"{slot} was ended before the assignment came"))
            return
        assert handle.key is None, "the slot was not reserved"
        handle.key = assignment.key
        run = handle.actor.run.options(name=assignment.label)
        handle.run = run.remote(assignment.key, assignment.spec, self._owner)

    def adopt(self, slot: str, key: str) -> bool:
        """See ``Pool.adopt``. A slot that does not answer is ended: what it runs is about to be run again."""
        known = self._slots.get(slot)
        if known and known.key not in (None, key):
            return False
        actor = known.actor if known else self._find(slot)
        if actor is None:
            return False
        try:
            view: SlotView = ray.get(_control(actor.adopt).remote(self._owner, key), timeout=_ADOPT_WITHIN)
        except GetTimeoutError:
            logger.warning("%s did not say within %g s whether it runs %s, and is ended", slot, _ADOPT_WITHIN, key)
            self._end_slot(slot, actor)
            return False
        except RayError as error:
            logger.warning("%s cannot be adopted: %s", slot, _first_line(error))
            self.abandon(key)
            return False
        # What this pool has submitted itself may still be on its way: the slot is then its own, and knows of no key yet.
        is_held = known is not None and known.key == key
        if view.owner != self._owner or not (is_held or view.key == key):
            self.abandon(key)
            return False
        if not is_held:
            run = _control(actor.follow).remote(key)
            self._slots[slot] = _SlotHandle(actor=actor, resources=view.resources, key=key, run=run)
        return True

    def abandon(self, key: str) -> None:
        """See ``Pool.abandon``."""
        for name, handle in list(self._slots.items()):
            if handle.key == key:
                del self._slots[name]

    def reclaim(self, owners: Collection[str]) -> None:
        """See ``Pool.reclaim``; does not wait for the slots' answers, which ``wait`` takes in."""
        if time.monotonic() < self._next_reclaim:
            return
        self._next_reclaim = time.monotonic() + _RECLAIM_EVERY
        asked = {name for name, _ in self._heirlooms.values()}
        for name in self._names():
            if name in self._slots or name in asked:
                continue
            actor = self._find(name)
            if actor is not None:
                ref = _control(actor.inherit).remote(self._owner, frozenset(owners), self._idle_seconds)
                self._heirlooms[ref] = (name, actor)

    def stop(self, key: str) -> None:
        """See ``Pool.stop``."""
        for handle in self._slots.values():
            if handle.key == key and handle.stop_until is None:
                handle.stop_until = time.monotonic() + _STOP_WITHIN
                _control(handle.actor.stop).remote(key)

    def checkpoint(self, key: str) -> None:
        """See ``Pool.checkpoint``."""
        for handle in self._slots.values():
            if handle.key == key and not handle.checkpointed:
                handle.checkpointed = True
                _control(handle.actor.checkpoint).remote(key)

    def wait(self, timeout: float) -> Sequence[Event]:
        """See ``Pool.wait``."""
        events, self._told = self._told, []
        self._look_at_running()
        answers = self._answers(0 if events else timeout)
        for name, handle in list(self._slots.items()):
            if any(ref in answers for ref in handle.refs):
                events += self._collect(name, handle, answers)
        self._take_heirlooms(answers)
        events += self._end_the_unheeding()
        self._end_idle()
        self._end_surplus()
        return events

    def remove(self, name: str) -> None:
        """End a slot, with whatever it runs, and free its resources."""
        self._end_slot(name, self._slots[name].actor)

    def close(self) -> None:
        """See ``Pool.close``."""
        ray.shutdown()

    def _answers(self, timeout: float) -> dict[Any, Any]:
        """The answers, or errors, of calls that are done; waits until there is one, or until a stopped trial is due."""
        pending = [ref for handle in self._slots.values() for ref in handle.refs]
        pending += self._heirlooms
        deadlines = [handle.stop_until for handle in self._slots.values() if handle.stop_until is not None]
        timeout = max(0.0, min([timeout, *(deadline - time.monotonic() for deadline in deadlines)]))
        if not pending:
            time.sleep(timeout)
            return {}
        try:
            done, rest = ray.wait(pending, num_returns=1, timeout=timeout)
            if done and rest:
                done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        except (RayError, RuntimeError, ConnectionError) as error:
            raise PoolGone(f"Ray does not wait any more: {_first_line(error)}") from error
        return _values(done)

    def _collect(self, name: str, handle: _SlotHandle, answers: Mapping[Any, Any]) -> list[Event]:
        events: list[Event] = []
        if handle.look in answers:
            events += self._progress(handle, answers[handle.look])
        if handle.run in answers:
            events += self._end(name, handle, answers[handle.run])
        elif handle.starting in answers:
            self._started(name, handle, answers[handle.starting])
        return events

    def _progress(self, handle: _SlotHandle, view: SlotView | BaseException) -> list[Event]:
        handle.look = None
        if isinstance(view, BaseException):
            return []  # the end of the run tells what happened
        if handle.key is None or view.key != handle.key or view.report in (None, handle.last_report):
            return []
        assert view.report is not None
        handle.last_report = view.report
        return [Progress(key=handle.key, report=view.report)]

    def _end(self, name: str, handle: _SlotHandle, answer: Outcome | BaseException | None) -> list[Event]:
        key = handle.key
        assert key is not None
        if answer is None:
            handle.run = _control(handle.actor.follow).remote(key)
            return []
        if isinstance(answer, Outcome):
            if answer.kind is OutcomeKind.OUT_OF_MEMORY:
                self.remove(name)  # its process would keep the memory
            else:
                self._slots[name] = _SlotHandle(actor=handle.actor, resources=handle.resources)
            return [Finished(key=key, outcome=answer)]
        return [self._without_outcome(name, key, answer)]

    def _without_outcome(self, name: str, key: str, error: BaseException) -> Event:
        if isinstance(error, (Refused, LookupError)):
            del self._slots[name]  # another runner's by now
        else:
            self.remove(name)
        logger.warning("lost %s on %s: %s", key, name, error)
        if isinstance(error, OutOfMemoryError):
            return Finished(key=key, outcome=Outcome.out_of_memory(_first_line(error)))
        return Lost(key=key, reason=_first_line(error))

    def _started(self, name: str, handle: _SlotHandle, answer: object) -> None:
        handle.starting, handle.since = None, time.monotonic()
        if isinstance(answer, BaseException):
            logger.warning("%s did not start: %s", name, _first_line(answer))
            self.remove(name)

    def _look_at_running(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _REPORT_EVERY
        for handle in self._slots.values():
            if handle.key and handle.look is None:
                handle.look = _control(handle.actor.view).remote()

    def _take_heirlooms(self, answers: Mapping[Any, Any]) -> None:
        for ref in [ref for ref in self._heirlooms if ref in answers]:
            (name, actor), view = self._heirlooms.pop(ref), answers[ref]
            if isinstance(view, SlotView) and view.owner == self._owner and name not in self._slots:
                is_idle = view.key is None or view.outcome is not None
                if is_idle:
                    self._slots[name] = _SlotHandle(actor=actor, resources=view.resources)

    def _end_the_unheeding(self) -> list[Event]:
        events: list[Event] = []
        for name, handle in list(self._slots.items()):
            if handle.key and handle.stop_until is not None and time.monotonic() >= handle.stop_until:
                logger.warning("%s did not heed that %s was stopped, and is ended", name, handle.key)
                self.remove(name)
                events.append(Finished(key=handle.key, outcome=Outcome.cancelled()))
        return events

    def _end_idle(self) -> None:
        now = time.monotonic()
        for name, handle in list(self._slots.items()):
            patience = self._idle_seconds if handle.starting is None else _START_WITHIN
            if handle.key is None and now - handle.since > patience:
                self.remove(name)

    def _end_surplus(self) -> None:
        if self._limit is not None and len(self._slots) > self._limit:
            idle = [name for name, handle in self._slots.items() if handle.key is None]
            for name in idle[: len(self._slots) - self._limit]:
                self.remove(name)

    def _make_room(self, resources: Resources) -> bool:
        """Whether one more slot fits, after idle slots of other shapes were given up where that makes the room."""
        spare = [
            name
            for name, handle in self._slots.items()
            if handle.key is None and handle.starting is None and handle.resources != resources
        ]
        given_up: list[str] = []
        while not self._fits(resources, given_up):
            if not spare:
                return False
            given_up.append(spare.pop())
        for name in given_up:
            self.remove(name)
        return True

    def _fits(self, resources: Resources, without: Collection[str]) -> bool:
        if self._limit is not None and len(self._slots) - len(without) >= self._limit:
            return False
        kept = [handle.resources for name, handle in self._slots.items() if name not in without]
        freed = [self._slots[name].resources for name in without]
        return self._cluster.room(resources, beside=kept, freed=freed) > 0

    def _start(self, resources: Resources) -> None:
        name = f"{_PREFIX}{self._owner[:6]}-{next(self._numbers)}"
        options = self._slot_actor.options(
            name=name,
            namespace=self._namespace,
            lifetime="detached",
            max_restarts=0,
            max_task_retries=0,
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
        )
        try:
            actor = in_time("start a slot", lambda: options.remote(resources, self._workspace, self._owner))
        except ValueError:
            return  # the name is taken, by a runner whose id starts alike; the next reservation tries the next one
        self._cluster.took(resources)
        starting = _control(actor.view).remote()
        self._slots[name] = _SlotHandle(actor=actor, resources=resources, starting=starting)

    def _end_slot(self, name: str, actor: Any) -> None:
        handle = self._slots.pop(name, None)
        if handle:
            self._cluster.gave_back(handle.resources)
        in_time("end a slot", lambda: ray.kill(actor))

    def _names(self) -> list[str]:
        named = in_time("list its actors", lambda: ray.util.list_named_actors(all_namespaces=True))
        return [a["name"] for a in named if a["namespace"] == self._namespace and a["name"].startswith(_PREFIX)]

    def _find(self, slot: str) -> Any:
        try:
            return in_time("find a slot", lambda: ray.get_actor(slot, namespace=self._namespace))
        except ValueError:
            return None


def _connect(address: str, namespace: str) -> None:
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING)
    except (RayError, RuntimeError, ConnectionError) as error:
        raise PoolGone(f"there is no Ray cluster at {address}: {_first_line(error)}") from error


def _control(method: Any) -> Any:
    """A method of a slot that does not wait for the end of what it runs."""
    # Every question would be a line of the dashboard's list of tasks, among which nobody would find the trials.
    return method.options(concurrency_group="control", enable_task_events=False)


def _values(done: Sequence[Any]) -> dict[Any, Any]:
    """What each call returned or raised: all at once, and one by one only where something was raised."""
    try:
        return dict(zip(done, ray.get(list(done), timeout=_ADOPT_WITHIN), strict=True))
    except (RayError, LookupError):
        return {ref: _value(ref) for ref in done}


def _value(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=_ADOPT_WITHIN)
    except (RayError, LookupError) as error:
        return error


def _first_line(error: BaseException) -> str:
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause  # what the slot raised, without the traceback around it
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
