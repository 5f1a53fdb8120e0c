"""A slot: a long-lived process that runs one trial at a time and remembers the last one until it is given the next.

That memory is what lets a new runner pick up where a killed one stopped: it asks each slot what it runs or ran. A slot has
one owner, the runner whose calls it heeds, so that a call of a runner that was replaced changes nothing, however late.
"""

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

from search.spec import Resources
from search.trial import Outcome, Report, TrialSpec
from workers.workspace import Workspace

FOLLOW_SECONDS = 10.0
"""How long ``Slot.follow`` waits at most: a thread of the slot waits with it, also for a caller that is gone by then."""


class Refused(Exception):
    """A runner gave an assignment to a slot that is another runner's by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """Whose a slot is, and the assignment that it runs or ran last: how far that got, and how it ended if it did."""

    resources: Resources
    owner: str
    key: str | None
    report: Report | None
    outcome: Outcome | None


class Slot:
    """Runs trials. One thread trains; others answer questions meanwhile."""

    def __init__(self, resources: Resources, workspace: Workspace, owner: str) -> None:
        # Torch is imported here and not above: a runner needs this class to name it, not to train.
        import torch

        from workers.checkpoints import delete_forgotten

        torch.set_num_threads(max(1, int(resources.cpus)))
        self._device = "cuda" if resources.gpus and torch.cuda.is_available() else "cpu"
        self._resources = resources
        self._workspace = workspace
        self._changed = threading.Condition()
        self._owner = owner
        self._key: str | None = None
        self._report: Report | None = None
        self._outcome: Outcome | None = None
        self._orphaned_at: float | None = None
        self._stopped: str | None = None
        self._checkpointed: str | None = None
        if workspace.checkpoints_dir:
            delete_forgotten(workspace.checkpoints_dir)

    def run(self, key: str, spec: TrialSpec, owner: str) -> Outcome:
        """Run one assignment to its end.

        Raises:
            Refused: ``owner`` is not the slot's owner any more.
        """
        from workers.pool import run_assignment

        with self._changed:
            if owner != self._owner:
                raise Refused(f"the slot is runner {self._owner}'s, not {owner}'s: {key} was not started")
            self._key, self._report, self._outcome = key, None, None
        outcome = run_assignment(
            spec,
            self._workspace,
            key=key,
            report=self._remember,
            should_stop=lambda: self._stopped == key,
            should_checkpoint=lambda: self._checkpointed == key,
            device=self._device,
        )
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()
        return outcome

    def view(self) -> SlotView:
        """What the slot holds now."""
        with self._changed:
            return SlotView(
                resources=self._resources,
                owner=self._owner,
                key=self._key,
                report=self._report,
                outcome=self._outcome,
            )

    def adopt(self, owner: str, key: str) -> SlotView:
        """Become ``owner``'s, if this slot runs ``key`` or ran it last; the view says whether it did."""
        with self._changed:
            if self._key == key:
                self._owner = owner
        return self.view()

    def inherit(self, owner: str, living: Collection[str], idle_seconds: float) -> SlotView:
        """Become ``owner``'s, if this slot is idle and its owner is none of ``living``; the view says whether it did.

        The outcome of what it ran last may still be wanted by whoever adopts that: it is kept for ``idle_seconds`` since
        somebody first saw that the owner is gone.
        """
        with self._changed:
            if self._owner != owner and self._owner in living:
                self._orphaned_at = None
            else:
                self._orphaned_at = self._orphaned_at or time.monotonic()
                is_kept = time.monotonic() < self._orphaned_at + idle_seconds
                if self._key is None or (self._outcome is not None and not is_kept):
                    self._owner, self._orphaned_at = owner, None
        return self.view()

    def follow(self, key: str) -> Outcome | None:
        """The end of the assignment ``key``, which this slot runs or ran last; None where it takes longer: ask again.

        Raises:
            LookupError: the slot has never had it, or has had another since.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._key != key or self._outcome is not None, FOLLOW_SECONDS)
            if self._key != key:
                raise LookupError(f"the slot holds {self._key}, not {key}")
            return self._outcome

    def stop(self, key: str) -> None:
        """Ask the assignment ``key`` to stop at its next step."""
        self._stopped = key

    def checkpoint(self, key: str) -> None:
        """Ask the assignment ``key`` to write a checkpoint at its next step, and to stop there."""
        self._checkpointed = key

    def _remember(self, report: Report) -> None:
        with self._changed:
            self._report = report
