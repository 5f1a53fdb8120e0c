"""What a search found: its structures by their mean loss, and those that no other one dominates.

Both are read off ``Result``, which follows every completion, so an answer costs the same after a hundred trials and after
a hundred thousand. A structure is known by its digest; its trials are its replicates. Trials that are excluded count for
nothing here.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import Any, Literal

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import InstrumentedAttribute, Session

from einlayers.errors import FieldError
from search.analysis.skyline import Point, skyline
from search.states import TrialState
from search.studies.baseline import DenseFrontier, Multiplier
from service import comparisons, evidence, repositories
from service.database import Database
from service.errors import InvalidValue
from service.listings import METRICS, TO_SHOW, Metric
from service.models import ParetoFront, Result, Search, Trial
from service.paging import Page, PageRequest, Standing, places_of

_MAX_KEPT = 5_000
"""How many members a front may have that is kept: more are found anew as fast as they are read back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedStructure:
    """A structure of a search at its place, counted from 1, with its replicates: the mean of their losses, its spread, and
    each with its seed. ``multiplier``: against the dense baseline of the proxy, if there is one. ``better_than_next``: the
    probability that it is better than the next of the best; None for the last one, where nothing is known of the noise
    between seeds, and in a front, which has no next by the loss alone."""

    rank: int
    trial: Trial
    replicates: Sequence[Trial]
    multiplier: Multiplier | None = None
    better_than_next: float | None = None

    @property
    def loss(self) -> float:
        """The mean held-out loss, in the unit of the proxy."""
        return sum(self._losses) / len(self._losses)

    @property
    def loss_sd(self) -> float | None:
        """The standard deviation between replicates; None for a single one."""
        if len(self._losses) < 2:
            return None
        return float((sum((loss - self.loss) ** 2 for loss in self._losses) / (len(self._losses) - 1)) ** 0.5)

    @property
    def _losses(self) -> list[float]:
        return [trial.loss for trial in self.replicates if trial.loss is not None]


@dataclass(frozen=True, slots=True)
class Goal:
    """A metric, and which end of it is better."""

    metric: Metric
    direction: Literal["min", "max"]

    def __str__(self) -> str:
        """As ``goals_of`` reads it."""
        return f"{self.metric}:{self.direction}"

    @property
    def column(self) -> InstrumentedAttribute[Any]:
        """Where a structure has its value: the loss is the mean over its trials, the rest is that of the first one."""
        return Result.loss_mean if self.metric == "loss" else METRICS[self.metric]


_GOALS = {str(goal): goal for metric in METRICS for goal in (Goal(metric, "min"), Goal(metric, "max"))}
_GOALS |= {metric: Goal(metric, "max" if metric == "psi" else "min") for metric in METRICS}


def goals_of(metrics: str) -> tuple[Goal, ...]:
    """Two to four metrics by commas: psi is maximised and the others minimised, unless ``:max`` or ``:min`` follows.

    Raises:
        InvalidValue: one is unknown or there twice, or there are too few or too many.
    """
    goals = [_GOALS[part] for part in metrics.replace(" ", "").split(",") if part in _GOALS]
    if len(goals) != metrics.count(",") + 1 or not 2 <= len({goal.metric for goal in goals}) == len(goals) <= 4:
        expected = f"two to four different ones of {', '.join(METRICS)}, by commas, :min or :max after any of them"
        raise InvalidValue("?metrics", FieldError("the metrics", expected=expected, got=metrics))
    return tuple(goals)


def add_completed(session: Session, search: Search, trials: Sequence[Trial]) -> None:
    """Count trials that have just completed among those of their structures.

    The caller holds the lock of the search, and has told of the completions, by events up to ``last_event``.
    """
    if not trials:
        return
    digests = {trial.digest for trial in trials}
    query = select(Result).where(Result.search_id == search.id, Result.digest.in_(digests))
    results = {result.digest: result for result in session.scalars(query)}
    for trial in trials:
        result = results.get(trial.digest)
        if result is None:
            results[trial.digest] = result = _result_of(search, [trial])
            session.add(result)
            continue
        _count(result, trial)
        if trial.number < session.scalars(select(Trial.number).where(Trial.id == result.trial_id)).one():
            result.trial_id = trial.id
        result.changed = search.last_event


def rebuild(session: Session, search: Search, digest: str) -> None:
    """Compute the result of a structure anew, because one of its trials was excluded or included again.

    The caller holds the lock of the search, and has told of the change: ``last_event`` is the event that did.
    """
    query = select(Trial).where(*_counted(search.id), Trial.digest == digest).order_by(Trial.number)
    if left := session.scalars(query).all():
        session.merge(_result_of(search, left))
    elif result := session.get(Result, (search.id, digest)):
        session.delete(result)


def best(session: Session, search_id: str, limit: int) -> list[RankedStructure]:
    """The structures of a search with the lowest mean loss over their trials, best first, ties by digest.

    Where more seeds than one were asked for, those that have only one come after all others.

    Raises:
        NotFound: there is no such search.
    """
    search = repositories.search_by_id(session, search_id)
    digests = comparisons.lowest(session, search, limit + 1)
    ranked = _ranked(session, search_id, list(digests))
    noise = comparisons.noise_of(session, search)
    if noise is None:
        return ranked[:limit]
    samples = list(digests.values())
    better = [noise.better(one, other) for one, other in pairwise(samples)]
    return [replace(each, better_than_next=p) for each, p in zip_longest(ranked, better)][:limit]


def pareto(database: Database, search_id: str, metrics: str, page: PageRequest) -> Page[RankedStructure]:
    """The structures that no other one of the search dominates in some metrics (see ``goals_of``), best in the first of
    them first.

    Equal ones do not dominate each other. A structure without a value for one of the metrics is none of them. The front
    is kept, so that the next answer looks at what is new alone.

    Raises:
        NotFound: there is no such search.
        InvalidValue: see ``goals_of``.
        BadPageToken: the token is not one of this front.
    """
    goals = goals_of(metrics)
    with database.read() as session:
        search = repositories.search_by_id(session, search_id)
        candidates, is_news = _candidates(session, search_id, goals)
        standings = _front(candidates)
        front = [digest for _, digest in standings]
        places, next_token = places_of(
            standings, page, of=f"front {search_id} {' '.join(map(str, goals))}", num_numbers=len(goals)
        )
        ranked = _ranked(session, search_id, front[places.start : places.stop], first_rank=places.start + 1)
    if is_news and len(front) <= _MAX_KEPT:
        _keep(database, search_id, goals, search.last_event, front)
    return Page(items=ranked, next_token=next_token)


def _result_of(search: Search, trials: Sequence[Trial]) -> Result:
    """The result of a structure with these trials, the first of them first."""
    result = Result(search_id=search.id, digest=trials[0].digest, trial_id=trials[0].id, changed=search.last_event)
    result.num_trials, result.loss_mean, result.loss_m2 = 0, 0.0, 0.0
    for trial in trials:
        _count(result, trial)
    return result


def _count(result: Result, trial: Trial) -> None:
    """Welford's update of a mean and of the sum of squares around it (Technometrics 4, 1962)."""
    assert trial.loss is not None, "a completed trial has a loss"
    deviation = trial.loss - result.loss_mean
    result.num_trials += 1
    result.loss_mean += deviation / result.num_trials
    result.loss_m2 += deviation * (trial.loss - result.loss_mean)


def _counted(search_id: str) -> tuple[ColumnElement[bool], ...]:
    return Trial.search_id == search_id, Trial.state == TrialState.COMPLETED, Trial.excluded_at.is_(None)


def _ranked(session: Session, search_id: str, digests: Sequence[str], first_rank: int = 1) -> list[RankedStructure]:
    # By digest alone: with more conditions, SQLite would read all completed trials to find these.
    query = select(Trial).where(Trial.search_id == search_id, Trial.digest.in_(digests)).options(*TO_SHOW)
    replicates: dict[str, list[Trial]] = defaultdict(list)
    for trial in sorted(session.scalars(query), key=lambda trial: trial.number):
        if trial.state is TrialState.COMPLETED and trial.excluded_at is None:
            replicates[trial.digest].append(trial)
    baseline = evidence.baseline_of(session, repositories.search_by_id(session, search_id).spec.proxy)
    return [
        RankedStructure(
            rank=rank,
            trial=replicates[digest][0],
            replicates=replicates[digest],
            multiplier=_multiplier(baseline, replicates[digest]),
        )
        for rank, digest in enumerate(digests, start=first_rank)
    ]


def _multiplier(baseline: DenseFrontier | None, replicates: Sequence[Trial]) -> Multiplier | None:
    losses = [trial.loss for trial in replicates if trial.loss is not None]
    # A loss may be 0, which no frontier reaches.
    if baseline is None or not all(loss > 0 for loss in losses):
        return None
    proxy = replicates[0].proxy_in(replicates[0].search)
    return baseline.multiplier(losses, proxy.train_flops)


def _candidates(session: Session, search_id: str, goals: Sequence[Goal]) -> tuple[dict[str, Point], bool]:
    """Structures among which the whole front is, and whether one of them is new since it was kept.

    What a member of the front dominates stays dominated for as long as that member stays what it is, whatever becomes of
    the rest. So the members and what has changed since are enough, unless a member itself has changed or is gone.
    """
    kept = session.get(ParetoFront, (search_id, _name(goals)))
    if kept is not None:
        members = _points(session, search_id, goals, Result.digest.in_(kept.digests))
        changed = _points(session, search_id, goals, Result.changed > kept.seen)
        if members.keys() - changed.keys() == set(kept.digests):
            return members | changed, bool(changed)
    return _points(session, search_id, goals), True


def _points(
    session: Session, search_id: str, goals: Sequence[Goal], *conditions: ColumnElement[bool]
) -> dict[str, Point]:
    """Where structures stand, by their digest; lower is better in every coordinate."""
    columns = [goal.column if goal.direction == "min" else -goal.column for goal in goals]
    query = select(Result.digest, *columns).join(Trial, Trial.id == Result.trial_id)
    query = query.where(Result.search_id == search_id, *(goal.column.is_not(None) for goal in goals), *conditions)
    return {row[0]: tuple(row[1:]) for row in session.execute(query)}


def _front(points: Mapping[str, Point]) -> list[Standing]:
    undominated = skyline(points.values())
    return sorted((point, digest) for digest, point in points.items() if point in undominated)


def _name(goals: Sequence[Goal]) -> str:
    """Of a front: the order of its metrics makes no other one."""
    return ",".join(sorted(map(str, goals)))


def _keep(database: Database, search_id: str, goals: Sequence[Goal], seen: int, digests: list[str]) -> None:
    """Keep a front for the next who asks. They can do without, so a failure is none.

    Two who ask at once may keep theirs in any order: what matters is that a front and its ``seen`` belong together.
    """
    with suppress(IntegrityError, OperationalError), database.write() as session:
        session.merge(ParetoFront(search_id=search_id, metrics=_name(goals), seen=seen, digests=digests))
