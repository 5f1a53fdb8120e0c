"""The state machines of searches, trials, attempts and studies, written down once, as data."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Self


class IllegalTransition(ValueError):
    """A resource was asked to enter a state that its current state does not lead to."""

    def __init__(self, current: "State", new: "State") -> None:
        self.current = current
        self.new = new
        legal = ", ".join(sorted(current.successors())) or "nothing: it is final"
        super().__init__(f"{current} does not lead to {new}; it leads to {legal}")


class State(StrEnum):
    """A state that knows its successors."""

    def successors(self) -> frozenset[Self]:
        """The states that may follow this one."""
        return _TRANSITIONS[type(self)].get(self, frozenset())  # type: ignore[return-value]  # its own states

    def to(self, new: Self) -> Self:
        """The new state, if it may follow this one.

        Raises:
            IllegalTransition: it may not.
        """
        if new not in self.successors():
            raise IllegalTransition(self, new)
        return new

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return not self.successors()


class SearchState(State):
    """A search waits, runs or pauses, stops for a reason, and ends."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


class TrialState(State):
    """A trial is proposed, runs (again, when its attempt was lost), and ends once: at once, where its result is known."""

    PROPOSED = "PROPOSED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    PRUNED = "PRUNED"
    INFEASIBLE = "INFEASIBLE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class AttemptState(State):
    """One run of a trial on one slot. ``ENDED``: with the outcome that ended its trial. The other ends but ``CANCELLED``
    send the trial back to wait for its next attempt: the slot was lost, ran out of memory, or wrote a checkpoint."""

    RUNNING = "RUNNING"
    ENDED = "ENDED"
    LOST = "LOST"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    CHECKPOINTED = "CHECKPOINTED"
    CANCELLED = "CANCELLED"


class StudyState(State):
    """A study runs until its searches have ended, and has a finding then, or none."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


# By machine, because members of two machines with the same name are equal strings.
_TRANSITIONS: Mapping[type[State], Mapping[State, frozenset[State]]] = {
    SearchState: {
        SearchState.QUEUED: frozenset({SearchState.RUNNING, SearchState.PAUSED, SearchState.STOPPING}),
        SearchState.RUNNING: frozenset({SearchState.PAUSED, SearchState.STOPPING}),
        SearchState.PAUSED: frozenset({SearchState.RUNNING, SearchState.STOPPING}),
        SearchState.STOPPING: frozenset({SearchState.COMPLETED, SearchState.CANCELLED, SearchState.FAILED}),
    },
    TrialState: {
        TrialState.PROPOSED: frozenset(
            {TrialState.RUNNING, TrialState.CANCELLED, TrialState.COMPLETED, TrialState.INFEASIBLE}
        ),
        TrialState.RUNNING: frozenset(set(TrialState) - {TrialState.RUNNING}),
    },
    AttemptState: {
        AttemptState.RUNNING: frozenset(set(AttemptState) - {AttemptState.RUNNING}),
    },
    StudyState: {
        StudyState.RUNNING: frozenset({StudyState.COMPLETED, StudyState.FAILED}),
    },
}
