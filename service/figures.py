"""How the service is doing, in a few numbers: the SELECTs behind ``/metrics`` and ``/readyz``.

They cost the same with a hundred thousand trials: every search counts its own, so that no trial is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import JSON, ColumnElement, func, select, type_coerce
from sqlalchemy.orm import Session

from search.states import AttemptState, SearchState, TrialState
from service import leases
from service.models import Attempt, Runner, Search


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Searches and trials by state, trials that wait in searches that go on, attempts that run, retries so far; the
    runners that are alive, which know their slots and latencies."""

    searches: Mapping[SearchState, int]
    trials: Mapping[TrialState, int]
    queue_depth: int
    running_attempts: int
    retries: int
    runners: Sequence[Runner]

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return sum(runner.stats.slots for runner in self.runners)

    @property
    def slots_busy(self) -> int:
        """How many of them train."""
        return sum(runner.stats.busy for runner in self.runners)


def read_figures(session: Session) -> Figures:
    """The figures at this moment."""
    sums = {state: func.sum(_count(state)).label(state) for state in TrialState}
    query = select(Search.state, func.count(), func.sum(Search.num_retries), *sums.values()).group_by(Search.state)
    searches = dict.fromkeys(SearchState, 0)
    trials = dict.fromkeys(TrialState, 0)
    queue_depth = retries = 0
    for state, num_searches, num_retries, *counts in session.execute(query):
        searches[state] = num_searches
        retries += num_retries
        for trial_state, count in zip(TrialState, counts, strict=True):
            trials[trial_state] += count
            if trial_state is TrialState.PROPOSED and state in leases.ACTIVE:
                queue_depth += count
    return Figures(
        searches=searches,
        trials=trials,
        queue_depth=queue_depth,
        running_attempts=_running_attempts(session),
        retries=retries,
        runners=leases.alive(session),
    )


def latest_runner(session: Session) -> Runner | None:
    """The runner that gave the last sign of life, alive or not; None where there was none within a day."""
    return session.scalars(select(Runner).order_by(Runner.seen_at.desc(), Runner.id).limit(1)).first()


def _count(state: TrialState) -> ColumnElement[int]:
    """How many trials of a search are in a state; a state without trials may be absent."""
    return func.coalesce(type_coerce(Search.counts, JSON)[state.value].as_integer(), 0)


def _running_attempts(session: Session) -> int:
    query = select(func.count()).select_from(Attempt).where(Attempt.state == AttemptState.RUNNING)
    return session.scalars(query).one()
