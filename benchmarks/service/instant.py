"""A runner whose trials take no time: ``python -m benchmarks.service.instant DATABASE_URL``. It ends with its parent.

All of the service but the training: proposals, leases, attempts, curves and outcomes are written as they always are.
"""

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence

from search.spec import Resources
from search.trial import Outcome, Report
from service import leases
from service.database import Database
from service.parent import stop_with_parent
from service.runner import Runner
from workers.pool import Assignment, Event, Finished, Lost, Progress

_LEASE_SECONDS = 30.0


class InstantPool:
    """Slots that tell the end of a trial, and two points on its way, as soon as they are asked."""

    def __init__(self, num_slots: int) -> None:
        self._slots = [f"slot {number}" for number in range(num_slots)]
        self._keys: dict[str, str] = {}
        self._untold: deque[Event] = deque()

    @property
    def num_slots(self) -> int:
        """See ``Pool``."""
        return len(self._slots)

    def assignments(self) -> Mapping[str, str]:
        """See ``Pool``."""
        return dict(self._keys)

    def alone(self, resources: Resources) -> Resources:
        """See ``Pool``."""
        return resources

    def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
        """See ``Pool``."""
        return [slot for slot in self._slots if slot not in self._keys.values()][:wanted]

    def room(self, resources: Resources) -> int:
        """See ``Pool.room``; all slots are there from the beginning."""
        return 0

    def missing(self, resources: Resources) -> str | None:
        """See ``Pool``."""
        return None

    def keep_at_most(self, number: int | None) -> None:
        """See ``Pool``; there is no other runner."""

    def submit(self, slot: str, assignment: Assignment) -> None:
        """See ``Pool``."""
        key = assignment.key
        self._keys[key] = slot
        loss = 2 + random.Random(key).random()
        curve = [
            Report(step=step, examples=100 * step, train_flops=1e5 * step, loss=loss + 1 / step) for step in (1, 2)
        ]
        self._untold += [Progress(key=key, report=report) for report in curve]
        self._untold.append(Finished(key=key, outcome=Outcome.completed(loss=loss, curve=tuple(curve), seconds=0.01)))

    def adopt(self, slot: str, key: str) -> bool:
        """See ``Pool``; nothing outlives this process."""
        return False

    def abandon(self, key: str) -> None:
        """See ``Pool``."""
        self._keys.pop(key, None)

    def reclaim(self, owners: Collection[str]) -> None:
        """See ``Pool``; there is nobody else's."""

    def stop(self, key: str) -> None:
        """See ``Pool``; it ends sooner than it could be stopped."""

    def checkpoint(self, key: str) -> None:
        """See ``Pool``; likewise."""

    def wait(self, timeout: float) -> Sequence[Event]:
        """See ``Pool``."""
        if not self._untold:
            time.sleep(timeout)
        told = list(self._untold)
        self._untold.clear()
        for event in told:
            if isinstance(event, (Finished, Lost)):
                self._keys.pop(event.key, None)
        return told

    def close(self) -> None:
        """See ``Pool``."""


def main(database_url: str) -> None:
    """Carry out all searches of a database until the parent ends."""
    stop_with_parent()
    database = Database(database_url)
    with database.write() as session:
        runner_id = leases.enrol(session, _LEASE_SECONDS).id
    Runner(database, InstantPool(8), runner_id, _LEASE_SECONDS).run(threading.Event())


if __name__ == "__main__":
    main(sys.argv[1])
