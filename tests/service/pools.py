"""Pools of local slots: more than one, shared by several runners, and such that break."""

import queue
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from search.spec import Resources
from search.trial import Report
from workers.pool import Assignment, Event, Finished, LocalPool, Lost, Progress, run_assignment
from workers.workspace import Workspace


@dataclass
class _Slot:
    """A local slot, and the pool that may use it."""

    local: LocalPool
    owner: "LocalPools"


class LocalPools:
    """Several local slots. The one that was filled last works first, so that trials end in another order than they start.

    The same pool may be given to a runner and to the one after it; ``for_another_runner`` gives a second runner a pool of
    its own on the same slots. ``busiest`` is how many worked at most at once.
    """

    def __init__(self, workspace: Workspace, num_slots: int, *, missing: str | None = None) -> None:
        self._workspace = workspace
        self._slots = {f"slot {number}": _Slot(LocalPool(workspace), self) for number in range(num_slots)}
        self._missing = missing
        self._limit: int | None = None
        self._keys: dict[str, str] = {}
        self.abandoned: list[str] = []
        self.reclaimed: list[frozenset[str]] = []
        self.busiest = 0

    def for_another_runner(self) -> Self:
        """A pool that holds nothing yet, on the slots of this one: what runs there can be adopted."""
        other = type(self)(self._workspace, 0, missing=self._missing)
        other._slots = self._slots
        return other

    def lose(self, slot: str) -> None:
        """Take a slot away with what it runs, and put an empty one in its place."""
        self._slots[slot] = _Slot(LocalPool(self._workspace), self)

    @property
    def num_slots(self) -> int:
        """See ``Pool.num_slots``."""
        idle = sum(not slot.local.assignments() for slot in self._slots.values())
        room = idle if self._limit is None else self._limit - len(self._keys)
        return len(self._keys) + max(0, min(idle, room))

    def assignments(self) -> Mapping[str, str]:
        """See ``Pool.assignments``."""
        return dict(self._keys)

    def alone(self, resources: Resources) -> Resources:
        """See ``Pool.alone``."""
        return resources

    def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
        """See ``Pool.reserve``; an idle slot is anyone's."""
        held = self._keys.values()
        idle = [name for name, slot in self._slots.items() if name not in held and not slot.local.assignments()]
        room = wanted if self._limit is None else min(wanted, self._limit - len(self._keys))
        return idle[: max(0, room)]

    def room(self, resources: Resources) -> int:
        """See ``Pool.room``; all slots are there from the beginning."""
        return 0

    def missing(self, resources: Resources) -> str | None:
        """See ``Pool.missing``."""
        return self._missing

    def keep_at_most(self, number: int | None) -> None:
        """See ``Pool.keep_at_most``."""
        self._limit = number

    def submit(self, slot: str, assignment: Assignment) -> None:
        """See ``Pool.submit``; a slot that another runner has filled meanwhile refuses it."""
        self._keys[assignment.key] = slot
        if not self._slots[slot].local.assignments():
            self._slots[slot].owner = self
            self._slots[slot].local.submit(LocalPool.SLOT, assignment)
        self.busiest = max(self.busiest, len(self._keys))

    def adopt(self, slot: str, key: str) -> bool:
        """See ``Pool.adopt``."""
        if slot not in self._slots or not self._slots[slot].local.adopt(LocalPool.SLOT, key):
            return False
        self._slots[slot].owner = self
        self._keys[key] = slot
        return True

    def abandon(self, key: str) -> None:
        """See ``Pool.abandon``; the key is noted in ``abandoned``."""
        self._keys.pop(key, None)
        self.abandoned.append(key)

    def reclaim(self, owners: Collection[str]) -> None:
        """See ``Pool.reclaim``; idle slots are anyone's already. The runners that live are noted in ``reclaimed``."""
        self.reclaimed.append(frozenset(owners))

    def stop(self, key: str) -> None:
        """See ``Pool.stop``."""
        if key in self._keys:
            self._slots[self._keys[key]].local.stop(key)

    def checkpoint(self, key: str) -> None:
        """See ``Pool.checkpoint``."""
        if key in self._keys:
            self._slots[self._keys[key]].local.checkpoint(key)

    def wait(self, timeout: float) -> Sequence[Event]:
        """See ``Pool.wait``; first, what was lost; then all of one assignment."""
        told = [event for key, slot in list(self._keys.items()) for event in self._without_working(key, slot)]
        if not told:
            mine = [name for name in self._slots if name in self._keys.values() and self._slots[name].owner is self]
            told = list(self._slots[mine[-1]].local.wait(timeout)) if mine else []
        for event in told:
            if not isinstance(event, Progress):
                self._keys.pop(event.key, None)
        return told

    def close(self) -> None:
        """See ``Pool.close``."""

    def _without_working(self, key: str, slot: str) -> Sequence[Event]:
        """What became of an assignment while others used its slot."""
        local, owner = self._slots[slot].local, self._slots[slot].owner
        if key in local.assignments():
            return []
        if owner is not self and local.adopt(LocalPool.SLOT, key):
            return local.wait(0)
        return [Lost(key=key, reason=f"{slot} is gone")]


class SlowPools(LocalPools):
    """Slots that work only when they are told to: meanwhile anything may happen to what they run."""

    works = True

    def wait(self, timeout: float) -> Sequence[Event]:
        """See ``Pool.wait``."""
        return super().wait(timeout) if self.works else []


class PowerCut(BaseException):
    """The end of a runner, without a warning."""


class CutOff(LocalPools):
    """Slots whose runner dies as soon as it waits for them, until ``power`` is back; they keep what they were given."""

    power = False

    def wait(self, timeout: float) -> Sequence[Event]:
        """See ``Pool.wait``.

        Raises:
            PowerCut: there is no power.
        """
        if not self.power:
            raise PowerCut
        return super().wait(timeout)


class SteppingPool(LocalPool):
    """One slot that works from point to point of the learning curve: a wait ends at the next one, and there it rests until
    the next wait, so that what is decided meanwhile comes in time."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self._told: queue.Queue[Event] = queue.Queue()
        self._may_go_on = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def wait(self, timeout: float) -> Sequence[Event]:
        """See ``Pool.wait``: one point, or the end."""
        if self._assignment is None:
            return []
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, args=(self._assignment,))
            self._thread.start()
        else:
            self._may_go_on.release()
        event = self._told.get()
        if isinstance(event, Finished):
            self._thread.join()
            self._thread, self._last, self._assignment = None, event, None
        return [event]

    def abandon(self, key: str) -> None:
        """See ``Pool.abandon``; what runs is left to the next runner, which is given the same pool."""

    def _work(self, assignment: Assignment) -> None:
        key = assignment.key

        def report(point: Report) -> None:
            self._told.put(Progress(key=key, report=point))
            self._may_go_on.acquire()

        outcome = run_assignment(
            assignment.spec, self._workspace, key=key, report=report, should_stop=lambda: key in self._stopped
        )
        self._told.put(Finished(key=key, outcome=outcome))
