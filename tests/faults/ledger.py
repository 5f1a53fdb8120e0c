"""What a search left behind, read from the database itself, and everything that must be true of it once it has ended."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isclose

from sqlalchemy import func, select
from sqlalchemy.orm import selectinload

from search.states import AttemptState, SearchState, TrialState
from service import repositories
from service.database import Database
from service.models import Attempt, Event, Measurement, Reason, Result, Search, Trial

GIVEN_UP = (AttemptState.LOST, AttemptState.CHECKPOINTED)
"""The ends of attempts after which a trial runs again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """A search with its trials and their attempts, its events, its results, and the points measured in each attempt."""

    search: Search
    trials: Sequence[Trial]
    events: Sequence[Event]
    results: Sequence[Result]
    points: Mapping[str, int]

    @property
    def completed(self) -> list[Trial]:
        """The trials that completed."""
        return [trial for trial in self.trials if trial.state is TrialState.COMPLETED]

    @property
    def num_lost(self) -> int:
        """How many trials the search owes: those of its budget that did not come to an end."""
        owed = self.search.num_unproposed if self.search.state is SearchState.COMPLETED else 0
        return owed + sum(not trial.state.is_final for trial in self.trials)

    @property
    def num_doubled(self) -> int:
        """How many trials ended more than once, or count twice in the results."""
        ends = sum(max(0, _states(trial).count(AttemptState.ENDED) - 1) for trial in self.trials)
        return ends + max(0, sum(result.num_trials for result in self.results) - len(self.completed))


def read_ledger(database: Database, search_id: str) -> Ledger:
    """The ledger of a search, as one transaction sees it."""
    with database.read() as session:
        trials = select(Trial).where(Trial.search_id == search_id).order_by(Trial.number)
        points = (
            select(Measurement.attempt_id, func.count())
            .join(Attempt, Attempt.id == Measurement.attempt_id)
            .where(Attempt.trial_id.startswith(f"{search_id}-"))
            .group_by(Measurement.attempt_id)
        )
        return Ledger(
            search=repositories.search_by_id(session, search_id),
            trials=session.scalars(trials.options(selectinload(Trial.attempts))).all(),
            events=session.scalars(select(Event).where(Event.search_id == search_id).order_by(Event.number)).all(),
            results=session.scalars(select(Result).where(Result.search_id == search_id)).all(),
            points={attempt: number for attempt, number in session.execute(points)},
        )


def assert_exactly_the_budget(database: Database, search_id: str, num_trials: int) -> Ledger:
    """The ledger of a search, which ended with just the trials of its budget, each completed by one attempt."""
    ledger = read_ledger(database, search_id)
    assert (ledger.search.state, ledger.search.reason) == (SearchState.COMPLETED, Reason.BUDGET_TRIALS)
    assert [trial.number for trial in ledger.trials] == list(range(num_trials))
    assert {trial.state for trial in ledger.trials} == {TrialState.COMPLETED}
    assert violations(ledger) == []
    return ledger


def violations(ledger: Ledger) -> list[str]:
    """What is wrong with the ledger of a search that has ended: nothing."""
    return [f"search {ledger.search.id}: {wrong}" for check in _CHECKS for wrong in check(ledger)]


def _check_end(ledger: Ledger) -> Iterator[str]:
    search = ledger.search
    if not search.state.is_final or search.finished_at is None or search.reason is None:
        yield f"has not ended: {search.state}, {search.reason}, at {search.finished_at}"
    if search.runner_id is not None:
        yield f"is held by runner {search.runner_id} still"
    if search.state is SearchState.COMPLETED and search.num_unproposed:
        yield f"completed, and {search.num_unproposed} trials of its budget were never tried"


def _check_numbers(ledger: Ledger) -> Iterator[str]:
    numbers = [trial.number for trial in ledger.trials]
    if numbers != list(range(len(numbers))):
        yield f"its trials are numbered {numbers}"
    orders = sorted(-1 if trial.finish_order is None else trial.finish_order for trial in ledger.trials)
    if orders != numbers:
        yield f"its trials ended in places {orders}"
    seeds = Counter(trial.seed for trial in ledger.trials)
    if len(seeds) != len(numbers):
        yield f"trials share a seed: {seeds.most_common(1)}"


def _check_counts(ledger: Ledger) -> Iterator[str]:
    counted = Counter(trial.state for trial in ledger.trials)
    counts = {state: number for state, number in ledger.search.counts.items() if number}
    if counts != dict(counted):
        yield f"it counts {counts}, and there are {dict(counted)}"
    reserved = sum(trial.train_flops for trial in ledger.trials)
    if not isclose(ledger.search.train_flops, reserved):
        yield f"it reserved {ledger.search.train_flops} FLOPs, and its trials have {reserved}"
    retried = sum(_states(trial).count(AttemptState.LOST) for trial in ledger.trials)
    if ledger.search.num_retries != retried:
        yield f"it counts {ledger.search.num_retries} retries, and {retried} attempts were lost"


def _check_attempts(ledger: Ledger) -> Iterator[str]:
    for trial in ledger.trials:
        states = _states(trial)
        if [attempt.number for attempt in trial.attempts] != list(range(1, len(states) + 1)):
            yield f"trial {trial.number} has attempts {[attempt.number for attempt in trial.attempts]}"
        earlier = states[:-1] if trial.state is TrialState.COMPLETED else [s for s in states if s in GIVEN_UP]
        if not set(earlier) <= set(GIVEN_UP) or (trial.state is TrialState.COMPLETED and states[-1:] != ["ENDED"]):
            yield f"trial {trial.number} is {trial.state} after attempts {[*map(str, states)]}"
        if AttemptState.RUNNING in states or not trial.state.is_final:
            yield f"trial {trial.number} is {trial.state} and has attempts {[*map(str, states)]} after the end"
        if any(attempt.finished_at is None for attempt in trial.attempts):
            yield f"trial {trial.number} has an attempt without a time of its end"


def _check_losses(ledger: Ledger) -> Iterator[str]:
    for trial in ledger.trials:
        if (trial.loss is not None) != (trial.state is TrialState.COMPLETED):
            yield f"trial {trial.number} is {trial.state} with loss {trial.loss}"
        elif trial.loss is not None and not ledger.points.get(trial.attempts[-1].id):
            yield f"trial {trial.number} has a loss and no learning curve"
    best = min((trial.loss for trial in ledger.completed if trial.loss is not None), default=None)
    if ledger.search.best_loss != best:
        yield f"its best loss is {ledger.search.best_loss}, and the lowest is {best}"


def _check_results(ledger: Ledger) -> Iterator[str]:
    by_digest: dict[str, list[float]] = {}
    for trial in ledger.completed:
        by_digest.setdefault(trial.digest, []).append(trial.loss or 0.0)
    if {result.digest: result.num_trials for result in ledger.results} != {d: len(x) for d, x in by_digest.items()}:
        yield "its results are not those of its completed trials"
        return
    for result in ledger.results:
        losses = by_digest[result.digest]
        if not isclose(result.loss_mean, sum(losses) / len(losses)):
            yield f"structure {result.digest} has mean loss {result.loss_mean}, and losses {losses}"


def _check_events(ledger: Ledger) -> Iterator[str]:
    numbers = [event.number for event in ledger.events]
    if numbers != list(range(1, ledger.search.last_event + 1)):
        yield f"its events are numbered {numbers}, and the last is {ledger.search.last_event}"
    told = [SearchState(event.data["state"]) for event in ledger.events if event.kind == "search.state"]
    yield from _check_story("the search", told, SearchState.QUEUED, ledger.search.state)
    for trial in ledger.trials:
        states = [
            TrialState(event.data["state"])
            for event in ledger.events
            if event.kind == "trial.state" and event.trial_id == trial.id
        ]
        yield from _check_story(f"trial {trial.number}", states, TrialState.PROPOSED, trial.state)
        if states.count(TrialState.RUNNING) != len(trial.attempts):
            yield f"trial {trial.number} ran {states.count(TrialState.RUNNING)} times in {len(trial.attempts)} attempts"
    if any(event.trial_id not in {trial.id for trial in ledger.trials} for event in ledger.events if event.trial_id):
        yield "its events tell of a trial that is not there"


def _check_story(
    what: str, told: Sequence[SearchState | TrialState], first: SearchState | TrialState, last: object
) -> Iterator[str]:
    steps: Iterable[tuple[SearchState | TrialState, SearchState | TrialState]] = pairwise(told)
    legal = all(after in before.successors() for before, after in steps)
    if not told or told[0] != first or told[-1] != last or not legal:
        yield f"events tell of {what}: {' '.join(told)}; it is {last}"


def _states(trial: Trial) -> list[AttemptState]:
    return [attempt.state for attempt in trial.attempts]


_CHECKS: Sequence[Callable[[Ledger], Iterator[str]]] = (
    _check_end,
    _check_numbers,
    _check_counts,
    _check_attempts,
    _check_losses,
    _check_results,
    _check_events,
)
