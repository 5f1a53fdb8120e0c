"""Where trials run: slots that take one trial each, and what they tell.

The runner decides and records; a pool carries out. An assignment is identified by its ``key`` (one attempt of one trial),
so that what a slot says late, or twice, or after its runner was replaced, is still about something definite.
"""

import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from search.spec import Resources
from search.trial import Outcome, Report, TrialSpec
from workers.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One attempt at one trial, for one slot; ``label`` is what people see of it while it runs.

    ``key`` is the attempt's id, ``<search>-<trial number>-<attempt number>``.
    """

    key: str
    label: str
    spec: TrialSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A running assignment has got this far; ``report`` is its newest point."""

    key: str
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """An assignment ended with an outcome."""

    key: str
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """An assignment will never end: its slot is gone, or never knew of it."""

    key: str
    reason: str


Event = Progress | Finished | Lost


class PoolGone(Exception):
    """The cluster is gone, or answers no more: this process cannot reach another one; start a new process."""


class Pool(Protocol):
    """Slots of a cluster, or of this process. Several runners may have pools on one cluster; each slot has one owner."""

    @property
    def num_slots(self) -> int:
        """How many slots this pool holds, busy, idle or starting."""
        ...

    def assignments(self) -> Mapping[str, str]:
        """The keys of the assignments that run, or whose end was not yet told, with the names of their slots."""
        ...

    def alone(self, resources: Resources) -> Resources:
        """The resources that give a trial, which had not enough memory with ``resources``, a device to itself."""
        ...

    def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
        """The names of up to ``wanted`` idle slots with these resources; has more made ready where there is room.

        Raises:
            PoolGone: the cluster is gone.
        """
        ...

    def room(self, resources: Resources) -> int:
        """How many more slots with these resources fit into what nobody holds now.

        Raises:
            PoolGone: the cluster is gone.
        """
        ...

    def missing(self, resources: Resources) -> str | None:
        """Why no slot with these resources can exist on this cluster as it is, or None where one can.

        Raises:
            PoolGone: the cluster is gone.
        """
        ...

    def keep_at_most(self, number: int | None) -> None:
        """Hold at most so many slots from now on (None: no limit): above it idle slots are ended, and none are made."""
        ...

    def submit(self, slot: str, assignment: Assignment) -> None:
        """Start an assignment on a reserved slot. Where the slot has another owner by now it is told as ``Lost``."""
        ...

    def adopt(self, slot: str, key: str) -> bool:
        """Take an assignment over that another runner gave to ``slot``, which then refuses that runner's calls.

        True where the slot runs ``key``, or ran it last: its end is then told, again, by ``wait``. False where the slot is
        gone, does not answer within a few seconds, or holds something else.

        Raises:
            PoolGone: the cluster is gone.
        """
        ...

    def abandon(self, key: str) -> None:
        """Forget an assignment, and its slot, that another runner has taken over. Nothing is told of it any more."""
        ...

    def reclaim(self, owners: Collection[str]) -> None:
        """Take over, or end, the idle slots whose owner is none of ``owners``; those that are busy are left alone.

        Raises:
            PoolGone: the cluster is gone.
        """
        ...

    def stop(self, key: str) -> None:
        """End an assignment as cancelled, soon; what does not heed it is ended by force. To call it again is harmless."""
        ...

    def checkpoint(self, key: str) -> None:
        """Ask an assignment to write a checkpoint and to end as checkpointed. To call it again is harmless."""
        ...

    def wait(self, timeout: float) -> Sequence[Event]:
        """What happened, waiting at most ``timeout`` seconds for something to happen.

        Raises:
            PoolGone: the cluster is gone.
        """
        ...

    def close(self) -> None:
        """Let go of the slots; what runs on a cluster goes on and can be adopted by the next pool."""
        ...


def run_assignment(spec: TrialSpec, workspace: Workspace, **options: object) -> Outcome:
    """Evaluate ``spec``; a fault of the code becomes a failed outcome with its traceback."""
    # Torch comes with it; the runner, which needs the rest of this module, has none in its image.
    from workers.evaluate import evaluate

    try:
        return evaluate(spec, workspace, **options)  # type: ignore[arg-type]  # evaluate's own keywords, passed through
    except Exception:
        return Outcome.failed(traceback.format_exc(limit=30))


class LocalPool:
    """One slot in this process, which works while the pool is waited for. For tests and debugging."""

    SLOT = "local"

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._assignment: Assignment | None = None
        self._last: Finished | None = None
        self._retell: Finished | None = None
        self._stopped: set[str] = set()
        self._checkpointed: set[str] = set()
        self._limit: int | None = None

    @property
    def num_slots(self) -> int:
        """See ``Pool.num_slots``."""
        return 1 if self.assignments() or self._limit != 0 else 0

    def assignments(self) -> Mapping[str, str]:
        """See ``Pool.assignments``."""
        held = self._assignment or self._retell
        return {held.key: self.SLOT} if held else {}

    def alone(self, resources: Resources) -> Resources:
        """See ``Pool.alone``; there is one slot, and it is alone."""
        return resources

    def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
        """See ``Pool.reserve``; every resource is taken to be there."""
        return [] if self.assignments() or self._limit == 0 else [self.SLOT][:wanted]

    def room(self, resources: Resources) -> int:
        """See ``Pool.room``; the one slot is held always."""
        return 0

    def missing(self, resources: Resources) -> str | None:
        """See ``Pool.missing``."""
        return None

    def keep_at_most(self, number: int | None) -> None:
        """See ``Pool.keep_at_most``."""
        self._limit = number

    def submit(self, slot: str, assignment: Assignment) -> None:
        """See ``Pool.submit``."""
        assert not self.assignments(), "the slot was not reserved"
        self._assignment = assignment

    def adopt(self, slot: str, key: str) -> bool:
        """See ``Pool.adopt``; only what this very pool was given can be found here."""
        if slot == self.SLOT and self._assignment is None and self._last and self._last.key == key:
            self._retell = self._last
        return slot == self.SLOT and key in self.assignments()

    def abandon(self, key: str) -> None:
        """See ``Pool.abandon``."""
        if key in self.assignments():
            self._assignment = self._retell = None

    def reclaim(self, owners: Collection[str]) -> None:
        """See ``Pool.reclaim``; nobody else has slots here."""

    def stop(self, key: str) -> None:
        """See ``Pool.stop``; it must come before, or out of, the wait in which the trial runs, and is never forced."""
        self._stopped.add(key)

    def checkpoint(self, key: str) -> None:
        """See ``Pool.checkpoint``; it must come before, or out of, the wait in which the trial runs."""
        self._checkpointed.add(key)

    def wait(self, timeout: float) -> Sequence[Event]:
        """Run the assignment to its end, however long that takes, and tell all of it at once."""
        retold, self._retell = self._retell, None
        if retold or self._assignment is None:
            return [retold] if retold else []
        key, spec = self._assignment.key, self._assignment.spec
        events: list[Event] = []
        outcome = run_assignment(
            spec,
            self._workspace,
            key=key,
            report=lambda report: events.append(Progress(key=key, report=report)),
            should_stop=lambda: key in self._stopped,
            should_checkpoint=lambda: key in self._checkpointed,
        )
        self._last, self._assignment = Finished(key=key, outcome=outcome), None
        return [*events, self._last]

    def close(self) -> None:
        """See ``Pool.close``."""
