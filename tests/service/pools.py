"""Pools of local slots: more than one, and such that break."""

from collections.abc import Mapping, Sequence

from search.spec import Resources
from workers.pool import Assignment, Event, LocalPool, Lost
from workers.workspace import Workspace


class LocalPools:
    """Several local slots. The one that was filled last works first, so that trials end in another order than they start.

    ``busiest`` is how many worked at most at once.
    """

    def __init__(self, workspace: Workspace, num_slots: int, *, missing: str | None = None) -> None:
        self._workspace = workspace
        self._slots = {f"slot {number}": LocalPool(workspace) for number in range(num_slots)}
        self._missing = missing
        self._lost: list[Event] = []
        self.busiest = 0

    def lose(self, slot: str) -> None:
        """Take a slot away with what it runs, and put an empty one in its place."""
        self._lost += [Lost(key=key, reason=f"{slot} is gone") for key in self._slots[slot].assignments()]
        self._slots[slot] = LocalPool(self._workspace)

    def assignments(self) -> Mapping[str, str]:
        """See ``Pool.assignments``."""
        return {key: slot for slot, pool in self._slots.items() for key in pool.assignments()}

    def reserve(self, resources: Resources, *, wanted: int) -> str | None:
        """See ``Pool.reserve``."""
        idle = (slot for slot, pool in self._slots.items() if pool.reserve(resources, wanted=wanted))
        return next(idle, None)

    def missing(self, resources: Resources) -> str | None:
        """See ``Pool.missing``."""
        return self._missing

    def submit(self, slot: str, assignment: Assignment) -> None:
        """See ``Pool.submit``."""
        self._slots[slot].submit(LocalPool.SLOT, assignment)
        self.busiest = max(self.busiest, len(self.assignments()))

    def stop(self, key: str) -> None:
        """See ``Pool.stop``."""
        for pool in self._slots.values():
            pool.stop(key)

    def wait(self, timeout: float) -> Sequence[Event]:
        """See ``Pool.wait``."""
        if self._lost:
            events, self._lost = self._lost, []
            return events
        busy = [pool for pool in self._slots.values() if pool.assignments()]
        return busy[-1].wait(timeout) if busy else []

    def close(self) -> None:
        """See ``Pool.close``."""


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
