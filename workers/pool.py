"""Where trials run: slots that take one trial each, and what they tell.

The runner decides and records; a pool carries out. An assignment is identified by its ``key`` (one attempt of one trial),
so that what a slot says late, or twice, or after its runner was replaced, is still about something definite.
"""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from search.spec import Resources
from search.trial import Outcome, Report, TrialSpec
from workers.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One attempt at one trial, for one slot; ``label`` is what people see of it while it runs."""

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


class Pool(Protocol):
    """Slots of a cluster, or of this process."""

    def assignments(self) -> Mapping[str, str]:
        """The keys of the assignments that run, or whose end was not yet told, with the names of their slots."""
        ...

    def reserve(self, resources: Resources, *, wanted: int) -> str | None:
        """The name of an idle slot with these resources, or None; makes up to ``wanted`` slots ready where there is room."""
        ...

    def missing(self, resources: Resources) -> str | None:
        """Why no slot with these resources can exist on this cluster as it is, or None where one can."""
        ...

    def submit(self, slot: str, assignment: Assignment) -> None:
        """Start an assignment on a reserved slot."""
        ...

    def stop(self, key: str) -> None:
        """Ask an assignment to end soon; it ends as cancelled."""
        ...

    def wait(self, timeout: float) -> Sequence[Event]:
        """What happened, waiting at most ``timeout`` seconds for something to happen."""
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
        self._stopped: set[str] = set()

    def assignments(self) -> Mapping[str, str]:
        """See ``Pool.assignments``."""
        return {self._assignment.key: self.SLOT} if self._assignment else {}

    def reserve(self, resources: Resources, *, wanted: int) -> str | None:
        """See ``Pool.reserve``; every resource is taken to be there."""
        return None if self._assignment else self.SLOT

    def missing(self, resources: Resources) -> str | None:
        """See ``Pool.missing``."""
        return None

    def submit(self, slot: str, assignment: Assignment) -> None:
        """See ``Pool.submit``."""
        assert self._assignment is None, "the slot was not reserved"
        self._assignment = assignment

    def stop(self, key: str) -> None:
        """See ``Pool.stop``; a trial that already runs is not interrupted."""
        self._stopped.add(key)

    def wait(self, timeout: float) -> Sequence[Event]:
        """Run the assignment to its end, however long that takes, and tell all of it at once."""
        if self._assignment is None:
            return []
        key, spec = self._assignment.key, self._assignment.spec
        events: list[Event] = []
        outcome = run_assignment(
            spec,
            self._workspace,
            report=lambda report: events.append(Progress(key=key, report=report)),
            should_stop=lambda: key in self._stopped,
        )
        self._assignment = None
        return [*events, Finished(key=key, outcome=outcome)]

    def close(self) -> None:
        """See ``Pool.close``."""
