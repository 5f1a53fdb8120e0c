"""What a search should be: the rules of the service once more, in plain Python, without a database and without a clock."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from search.spec import Budget
from search.states import AttemptState, SearchState, TrialState
from search.trial import Outcome, OutcomeKind
from service.models import PauseMode, Reason
from service.trials import MAX_LOST_ATTEMPTS

OPEN = (SearchState.QUEUED, SearchState.RUNNING, SearchState.PAUSED)


@dataclass(slots=True, kw_only=True)
class AttemptModel:
    """One run of a trial."""

    id: str
    runner_id: str
    epoch: int
    state: AttemptState = AttemptState.RUNNING
    is_late: bool = False


@dataclass(slots=True, kw_only=True)
class TrialModel:
    """One structure, trained or to be trained."""

    id: str
    digest: str
    state: TrialState = TrialState.PROPOSED
    loss: float | None = None
    is_excluded: bool = False
    is_alone: bool = False
    finish_order: int | None = None
    attempts: list[AttemptModel] = field(default_factory=list)

    @property
    def counts(self) -> bool:
        """Whether it is part of the answers."""
        return self.state is TrialState.COMPLETED and not self.is_excluded


@dataclass(slots=True, kw_only=True)
class SearchModel:
    """A search; every method is something that happens to it, and must be allowed (see the properties)."""

    id: str
    budget: Budget
    flops: float
    concurrency: int
    state: SearchState = SearchState.QUEUED
    reason: Reason | None = None
    pause_mode: PauseMode | None = None
    runner_id: str | None = None
    epoch: int = 0
    seconds: float = 0.0
    num_retries: int = 0
    trials: list[TrialModel] = field(default_factory=list)

    @property
    def num_unproposed(self) -> int:
        """How many more trials the budget pays for."""
        most = self.budget.num_trials(self.flops)
        return 100_000 if most is None else max(0, most - len(self.trials))

    @property
    def num_running(self) -> int:
        """How many trials run."""
        return self.count(TrialState.RUNNING)

    @property
    def num_finished(self) -> int:
        """How many trials have ended."""
        return sum(trial.state.is_final for trial in self.trials)

    @property
    def can_start(self) -> bool:
        """Whether a runner may start a trial now."""
        wanting = self.state in (SearchState.QUEUED, SearchState.RUNNING)
        left = self.count(TrialState.PROPOSED) + self.num_unproposed
        return wanting and min(self.concurrency - self.num_running, left) > 0

    @property
    def can_end(self) -> bool:
        """Whether nothing is left to run."""
        if self.state is SearchState.STOPPING:
            return self.num_running == 0
        return self.state is SearchState.RUNNING and self.num_unproposed == 0 and self.num_finished == len(self.trials)

    @property
    def is_out_of_time(self) -> bool:
        """Whether its time is over."""
        limit = self.budget.max_seconds
        return self.state is SearchState.RUNNING and limit is not None and self.seconds >= limit

    @property
    def best_loss(self) -> float | None:
        """The lowest loss."""
        return min((trial.loss for trial in self.trials if trial.counts and trial.loss is not None), default=None)

    @property
    def losses(self) -> dict[str, list[float]]:
        """By structure, the losses that count, in the order of their trials."""
        found: dict[str, list[float]] = defaultdict(list)
        for trial in self.trials:
            if trial.counts and trial.loss is not None:
                found[trial.digest].append(trial.loss)
        return found

    def count(self, state: TrialState) -> int:
        """How many trials are in a state."""
        return sum(trial.state is state for trial in self.trials)

    def covers(self, budget: Budget) -> bool:
        """Whether a budget pays for the trials that there are."""
        most = budget.num_trials(self.flops)
        return most is None or most >= len(self.trials)

    def attempts(self) -> Iterator[tuple[TrialModel, AttemptModel]]:
        """Every attempt with its trial."""
        return ((trial, attempt) for trial in self.trials for attempt in trial.attempts)

    def move(self, state: SearchState, reason: Reason | None = None) -> None:
        """Enter a state."""
        self.state, self.reason, self.pause_mode = state, reason, None

    def next_proposed(self) -> TrialModel | None:
        """The first trial that waits."""
        return next((trial for trial in self.trials if trial.state is TrialState.PROPOSED), None)

    def start(self, trial: TrialModel, attempt_id: str) -> None:
        """A runner starts a trial."""
        assert self.runner_id is not None
        if self.state is SearchState.QUEUED:
            self.move(SearchState.RUNNING)
        trial.state = TrialState.RUNNING
        trial.attempts.append(AttemptModel(id=attempt_id, runner_id=self.runner_id, epoch=self.epoch))

    def hear(self, trial: TrialModel, attempt: AttemptModel, outcome: Outcome, *, is_holder: bool) -> None:
        """A runner hears how an attempt ended."""
        if not is_holder or attempt.state is not AttemptState.RUNNING:
            attempt.is_late |= attempt.state is AttemptState.LOST
        elif outcome.kind is OutcomeKind.CHECKPOINTED:
            attempt.state, trial.state = AttemptState.CHECKPOINTED, TrialState.PROPOSED
        elif outcome.kind is OutcomeKind.OUT_OF_MEMORY:
            attempt.state = AttemptState.OUT_OF_MEMORY
            if trial.is_alone:
                self.end(trial, TrialState.INFEASIBLE)
            else:
                trial.state, trial.is_alone, self.num_retries = TrialState.PROPOSED, True, self.num_retries + 1
        else:
            cancelled = outcome.kind is OutcomeKind.CANCELLED
            attempt.state = AttemptState.CANCELLED if cancelled else AttemptState.ENDED
            trial.loss = outcome.loss
            self.end(trial, TrialState[outcome.kind.name])

    def lose(self, trial: TrialModel, attempt: AttemptModel, *, is_holder: bool) -> None:
        """A runner hears that an attempt's slot is gone."""
        if not is_holder or attempt.state is not AttemptState.RUNNING:
            return
        attempt.state = AttemptState.LOST
        if sum(attempt.state is AttemptState.LOST for attempt in trial.attempts) < MAX_LOST_ATTEMPTS:
            trial.state, self.num_retries = TrialState.PROPOSED, self.num_retries + 1
        else:
            self.end(trial, TrialState.FAILED)

    def end(self, trial: TrialModel, state: TrialState) -> None:
        """A trial ends."""
        trial.finish_order, trial.state = self.num_finished, state
        too_many = self.count(TrialState.FAILED) >= self.budget.max_failures
        if too_many and self.state in (SearchState.RUNNING, SearchState.PAUSED):
            self.move(SearchState.STOPPING, Reason.TOO_MANY_FAILURES)

    def conclude(self) -> None:
        """What waits is dropped, and the search ends."""
        for trial in self.trials:
            if trial.state is TrialState.PROPOSED:
                trial.finish_order, trial.state = self.num_finished, TrialState.CANCELLED
        reason = self.reason or self._spent()
        states = Counter(trial.state for trial in self.trials)
        if reason is Reason.USER:
            self.move(SearchState.CANCELLED, reason)
        elif reason is Reason.TOO_MANY_FAILURES:
            self.move(SearchState.FAILED, reason)
        elif states and set(states) == {TrialState.FAILED}:
            self.move(SearchState.FAILED, Reason.ALL_TRIALS_FAILED)
        else:
            self.move(SearchState.COMPLETED, reason)
        self.runner_id = None

    def _spent(self) -> Reason:
        by_trials = self.budget.max_trials == self.budget.num_trials(self.flops)
        return Reason.BUDGET_TRIALS if by_trials else Reason.BUDGET_TRAIN_FLOPS
