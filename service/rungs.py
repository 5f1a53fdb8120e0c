"""Early stopping at the edge: what the database knows of the trials of a search at a point of their learning curves."""

from collections.abc import Mapping, MutableMapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from search.pruning import POINT, Climber, Verdict, is_rung, judge, point_of
from search.trial import Report
from service.models import Attempt, Measurement, Origin, Search, Trial


def verdict(session: Session, search: Search, attempt: Attempt, report: Report) -> Verdict | None:
    """Whether a trial is to be stopped, now that it has reported; never one that somebody asked for by its structure, nor
    one of which anything is not known that the search minimises."""
    spec, trial = search.spec, attempt.trial
    point = point_of(report.train_flops / spec.proxy.train_flops)
    if trial.origin is not Origin.SEARCH or not is_rung(spec.pruner, trial.number, point):
        return None
    own = [getattr(trial, name) for name in spec.other_metrics]
    if None in own:
        return None
    climbers = _climbers(session, search, point)
    before = climbers.pop(trial.number, None)
    climber = Climber(
        number=trial.number,
        digest=trial.digest,
        loss=report.loss,
        earlier_loss=None if before is None else before.earlier_loss,
        others=tuple(map(float, own)),
    )
    return judge(spec.pruner, climber, climbers.values(), point=point, replicates=spec.replicates)


def _climbers(session: Session, search: Search, point: float) -> MutableMapping[int, Climber]:
    """The trials that have been at this point, by number; of several attempts the last."""
    others = [getattr(Trial, name) for name in search.spec.other_metrics]
    here, earlier = (_losses(session, search, each) for each in (point, point / 2))
    query = select(Trial.number, Trial.digest, Trial.loss, *others).where(
        Trial.search_id == search.id, Trial.excluded_at.is_(None), *(other.is_not(None) for other in others)
    )
    return {
        number: Climber(
            number=number,
            digest=digest,
            loss=here[number],
            earlier_loss=earlier.get(number),
            final_loss=final_loss,
            others=tuple(map(float, costs)),
        )
        for number, digest, final_loss, *costs in session.execute(query)
        if number in here
    }


def _losses(session: Session, search: Search, point: float) -> Mapping[int, float]:
    """The losses at this point, by the number of the trial."""
    total = search.spec.proxy.train_flops
    query = (
        select(Trial.number, Measurement.loss)
        .join(Attempt, Attempt.trial_id == Trial.id)
        .join(Measurement, Measurement.attempt_id == Attempt.id)
        .where(
            Trial.search_id == search.id,
            Measurement.train_flops.between(point * POINT * total, point / POINT * total),
        )
        .order_by(Trial.number, Attempt.number)
    )
    return {number: loss for number, loss in session.execute(query)}
