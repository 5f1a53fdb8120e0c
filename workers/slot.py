"""A slot: a long-lived process that runs one trial at a time and remembers the last one until it is given the next.

That memory is what lets a new runner pick up where a killed one stopped: it asks each slot what it runs or ran.
"""

import threading
from dataclasses import dataclass

from search.spec import Resources
from search.trial import Outcome, Report, TrialSpec
from workers.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """What a slot holds: the assignment that it runs or ran last, how far that got, and how it ended if it did."""

    resources: Resources
    key: str | None
    report: Report | None
    outcome: Outcome | None


class Slot:
    """Runs trials. One thread trains; others answer questions meanwhile."""

    def __init__(self, resources: Resources, workspace: Workspace) -> None:
        # Torch is imported here and not above: a runner needs this class to name it, not to train.
        import torch

        torch.set_num_threads(max(1, int(resources.cpus)))
        self._device = "cuda" if resources.gpus and torch.cuda.is_available() else "cpu"
        self._resources = resources
        self._workspace = workspace
        self._changed = threading.Condition()
        self._key: str | None = None
        self._report: Report | None = None
        self._outcome: Outcome | None = None
        self._stopped: str | None = None

    def run(self, key: str, spec: TrialSpec) -> Outcome:
        """Run one assignment to its end."""
        from workers.pool import run_assignment

        with self._changed:
            self._key, self._report, self._outcome = key, None, None
        outcome = run_assignment(
            spec,
            self._workspace,
            report=self._remember,
            should_stop=lambda: self._stopped == key,
            device=self._device,
        )
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()
        return outcome

    def view(self) -> SlotView:
        """What the slot holds now."""
        with self._changed:
            return SlotView(resources=self._resources, key=self._key, report=self._report, outcome=self._outcome)

    def follow(self, key: str) -> Outcome:
        """Wait for the end of the assignment ``key``, which this slot runs or ran last.

        Raises:
            LookupError: the slot has never had it, or has had another since.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._key != key or self._outcome is not None)
            if self._key != key or self._outcome is None:
                raise LookupError(f"the slot holds {self._key}, not {key}")
            return self._outcome

    def stop(self, key: str) -> None:
        """Ask the assignment ``key`` to stop at its next step."""
        self._stopped = key

    def _remember(self, report: Report) -> None:
        with self._changed:
            self._report = report
