"""How the Pareto front of a search grew: the hypervolume that its trials dominate, after each of them that made it larger.

Metrics differ by magnitudes, so volumes are of logarithms: of how many times a metric is below its reference. A volume of 1
is that of one structure that is better by a factor of e in each of them. Every trial counts by its own loss, so that what
was reached once stays reached.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast, get_args

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from einlayers.errors import FieldError
from search.analysis.hypervolume import FrontTooLarge, growth
from search.analysis.skyline import Point
from search.states import TrialState
from service import repositories
from service.errors import InvalidValue
from service.listings import METRICS
from service.models import Trial

CostMetric = Literal["loss", "params", "macs", "latency", "peak_memory", "seconds"]
"""Metrics of which less is better, and that have ratios."""

MARGIN = 1.1
"""How many times the worst value the reference is where none is given: the ends of a front count too."""

MAX_POINTS = 1_000
"""How many points an answer has at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervolumePoint:
    """The hypervolume once trial ``number`` had ended, and the training FLOPs of all trials that had by then."""

    number: int
    finished_at: datetime
    train_flops: float
    hypervolume: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypervolumes:
    """The growth of a hypervolume, and the reference that it is measured from; None where no trial counts yet."""

    reference: dict[CostMetric, float] | None
    points: Sequence[HypervolumePoint]


def over_time(session: Session, search_id: str, metrics: str, reference: str | None = None) -> Hypervolumes:
    """The hypervolume of the completed trials of a search in two to four metrics, in the order in which they ended.

    There is a point for each trial that made it larger, and one for the last that ended; of more than ``MAX_POINTS``,
    evenly spread ones. ``reference``: a value for each metric, or else ``MARGIN`` times the worst of each by now. Trials
    that are excluded, or that lack a positive value of a metric, dominate nothing; their compute is counted.

    Raises:
        NotFound: there is no such search.
        InvalidValue: a metric is unknown or there twice, there are too few or too many, or their front is too large; or
            the reference is not one positive number for each.
    """
    names = _metrics_of(metrics)
    given = None if reference is None else _reference_of(reference, names)
    repositories.search_by_id(session, search_id)
    ended = _ended(session, search_id, names)
    values = [_values(row, len(names)) for row in ended]
    counted = [value for value in values if value is not None]
    limits = given or (tuple(MARGIN * max(each) for each in zip(*counted, strict=True)) if counted else None)
    if limits is None:
        return Hypervolumes(reference=None, points=[])
    try:
        points = list(_points(ended, values, limits))
    except FrontTooLarge as error:
        expected = f"two, or metrics whose front has no more than {error.limit} trials"
        raise InvalidValue("?metrics", FieldError("the metrics", expected=expected, got=metrics)) from error
    return Hypervolumes(reference=dict(zip(names, limits, strict=True)), points=_thinned(points))


def _metrics_of(text: str) -> tuple[CostMetric, ...]:
    names = text.replace(" ", "").split(",")
    known = get_args(CostMetric)
    if not set(names) <= set(known) or not 2 <= len(set(names)) == len(names) <= 4:
        expected = f"two to four different ones of {', '.join(known)}, by commas"
        raise InvalidValue("?metrics", FieldError("the metrics", expected=expected, got=text))
    return tuple(cast(CostMetric, name) for name in names)


def _reference_of(text: str, names: Sequence[CostMetric]) -> Point:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != len(names) or not all(0 < value < math.inf for value in found):
        expected = f"positive numbers by commas, one each for {', '.join(names)}"
        raise InvalidValue("?reference", FieldError("the reference", expected=expected, got=text))
    return found


def _ended(session: Session, search_id: str, names: Sequence[CostMetric]) -> Sequence[Row[Any]]:
    """The trials of a search that have ended, in that order: first whether they count, and their values."""
    counts = (Trial.state == TrialState.COMPLETED) & Trial.excluded_at.is_(None)
    columns = (counts, *(METRICS[name] for name in names), Trial.number, Trial.finished_at, Trial.train_flops)
    query = select(*columns).where(Trial.search_id == search_id, Trial.finish_order.is_not(None))
    return session.execute(query.order_by(Trial.finish_order)).all()


def _values(row: Row[Any], number: int) -> Point | None:
    counts, *values = row[: 1 + number]
    return tuple(map(float, values)) if counts and all(value is not None and value > 0 for value in values) else None


def _points(ended: Iterable[Row[Any]], values: Sequence[Point | None], reference: Point) -> Iterator[HypervolumePoint]:
    """A point for each trial that made the volume larger, and the last one."""
    logs = (tuple(map(math.log, value)) for value in values if value is not None)
    volumes = growth(logs, tuple(map(math.log, reference)))
    volume, train_flops, last = 0.0, 0.0, len(values) - 1
    for place, (row, value) in enumerate(zip(ended, values, strict=True)):
        before, volume = volume, volume if value is None else next(volumes)
        train_flops += row.train_flops
        if volume > before or place == last:
            yield HypervolumePoint(
                number=row.number, finished_at=row.finished_at, train_flops=train_flops, hypervolume=volume
            )


def _thinned(points: Sequence[HypervolumePoint]) -> Sequence[HypervolumePoint]:
    """At most ``MAX_POINTS`` of them, the first and the last among these."""
    if len(points) <= MAX_POINTS:
        return points
    return [points[place * (len(points) - 1) // (MAX_POINTS - 1)] for place in range(MAX_POINTS)]
