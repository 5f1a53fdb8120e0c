"""Early stopping: which trials are not worth their whole compute, by what others had reached with as little.

Trials of a search are measured at the same shares of their compute, half powers of two (``workers.training``), at a constant
rate and with averaged weights, so that every point counts. Some of these are rungs, at which a trial goes on only where its
structure is among the best of those that have been there, or may still become the best by the way that curves go on.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from search.stopping import Extrapolation, Hyperband, MedianRule, NoPruner, PrunerSpec, SuccessiveHalving

POINT = 2**-0.25
"""A point belongs to the share that it is within this factor of: points lie at half powers of two, in whole steps."""

_ROUNDING = 1e-6
"""Slopes that are so near to each other tell nothing."""

_POINTS = tuple(2 ** (-k / 2) for k in range(1, 9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Climber:
    """A trial of a search at a rung: its number, the model that it trains, its loss there, with half of that compute, and at
    its end, if it has them; and what the search minimises beside the loss."""

    number: int
    digest: str
    loss: float
    earlier_loss: float | None = None
    final_loss: float | None = None
    others: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a trial is stopped, and the loss that it would have had."""

    reason: str
    expected_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How learning curves go on from a rung, told by those that went on: the log of the loss falls by what is usual, and
    further where it fell by more with the last doubling of compute.

    A linear regression of the one on the other. ``sd``: the standard deviation of what is left, in logs; None where too few
    went on to tell.
    """

    usual_fall: float
    usual_slope: float = 0.0
    rate: float = 0.0
    num: int = 0
    squares: float = math.inf
    sd: float | None = None

    @classmethod
    def of(cls, climbers: Iterable[Climber]) -> Self:
        """By those with a loss at their end; where there are none, losses are expected to stay as they are."""
        ended = [(each, each.final_loss) for each in climbers if each.final_loss is not None]
        falls = [(_slope(each), math.log(final / each.loss)) for each, final in ended if min(each.loss, final) > 0]
        pairs = [(slope, fall) for slope, fall in falls if slope is not None]
        num = len(pairs)
        if num < 3:
            return cls(usual_fall=statistics.median([fall for _, fall in falls] or [0.0]))
        usual_slope, usual_fall = (statistics.fmean(each) for each in zip(*pairs, strict=True))
        away = [(slope - usual_slope, fall - usual_fall) for slope, fall in pairs]
        squares = sum(slope * slope for slope, _ in away)
        if squares < num * _ROUNDING**2:
            squares = math.inf
        rate = sum(slope * fall for slope, fall in away) / squares
        sd = math.sqrt(sum((fall - rate * slope) ** 2 for slope, fall in away) / (num - 2))
        return cls(usual_fall=usual_fall, usual_slope=usual_slope, rate=rate, num=num, squares=squares, sd=sd)

    def final_loss(self, climber: Climber) -> float:
        """What a trial is expected to have at its end."""
        return climber.loss * math.exp(self.usual_fall + self.rate * self._excess(climber))

    def error(self, climber: Climber) -> float:
        """The standard deviation of the log of that."""
        if self.sd is None:
            return math.inf
        return self.sd * math.sqrt(1 + 1 / self.num + self._excess(climber) ** 2 / self.squares)

    def _excess(self, climber: Climber) -> float:
        slope = _slope(climber)
        return 0.0 if slope is None else slope - self.usual_slope


def _slope(climber: Climber) -> float | None:
    if climber.earlier_loss is None or min(climber.loss, climber.earlier_loss) <= 0:
        return None
    return math.log(climber.loss / climber.earlier_loss)


def point_of(share: float) -> float:
    """The point of the learning curve, as a share of the compute, that a report after ``share`` of it stands for."""
    return min((1.0, *_POINTS), key=lambda point: abs(math.log(point / share)))


def is_rung(pruner: PrunerSpec, number: int, point: float) -> bool:
    """Whether trial ``number`` is judged at this point of its curve."""
    match pruner:
        case SuccessiveHalving():
            return point in _rungs(pruner.reduction, pruner.min_share)
        case Hyperband():
            return point in _rungs(pruner.reduction, pruner.min_share)[_bracket(pruner, number) :]
        case MedianRule() | Extrapolation():
            return pruner.min_share <= point < 1
        case NoPruner():
            return False


def judge(
    pruner: PrunerSpec, climber: Climber, others: Iterable[Climber], *, point: float, replicates: int
) -> Verdict | None:
    """Whether a trial at a rung is stopped; ``others``: the other trials of the search that have been at this point.

    Structures are compared, by the means of their seeds; of several objectives, those are better that are as good in all
    of them and better in one. Where a search trains ``replicates`` of each, no structure is given up by one seed.
    """
    others = list(others)
    own = [each for each in others if each.digest == climber.digest]
    if isinstance(pruner, NoPruner) or len(own) + 1 < min(2, replicates):
        return None
    forecast = Forecast.of(others)
    rivals = [each for each in others if each.digest != climber.digest]
    if isinstance(pruner, Extrapolation):
        place = _hopeless(pruner, [*own, climber], rivals, forecast)
    else:
        place = _behind(pruner, [*own, climber], rivals)
    if place is None:
        return None
    mean = statistics.fmean(each.loss for each in (*own, climber))
    return Verdict(
        reason=f"at {point:.3g} of its compute with a loss of {mean:.4g}, {place}",
        expected_loss=forecast.final_loss(climber),
    )


def _behind(
    pruner: SuccessiveHalving | Hyperband | MedianRule, own: Sequence[Climber], rivals: Iterable[Climber]
) -> str | None:
    """Too many are better at this rung."""
    climber = own[-1]
    if isinstance(pruner, Hyperband):
        rivals = [each for each in rivals if _bracket(pruner, each.number) == _bracket(pruner, climber.number)]
    means = _means((each, each.loss) for each in rivals)
    if len(means) < pruner.startup_structures:
        return None
    mean = statistics.fmean(each.loss for each in own)
    num_better = sum(_dominates(each, (mean, *climber.others)) for each in means)
    if num_better < math.ceil((len(means) + 1) / pruner.reduction):
        return None
    return f"worse than {num_better} of {len(means)} other structures"


def _hopeless(
    pruner: Extrapolation, own: Sequence[Climber], rivals: Iterable[Climber], forecast: Forecast
) -> str | None:
    """Another one has ended with a loss that this will hardly get down to."""
    climber = own[-1]
    means = _means((each, each.final_loss) for each in rivals if each.final_loss is not None)
    if len(means) < pruner.startup_structures or _slope(climber) is None:
        return None
    mean = statistics.fmean(forecast.final_loss(each) for each in own)
    hoped = (mean * math.exp(-pruner.margin * forecast.error(climber)), *climber.others)
    best = min((each for each in means if _dominates(each, hoped)), default=None)
    if best is None:
        return None
    return f"expected to end at {mean:.4g}, and hardly below {hoped[0]:.4g}, where another structure has {best[0]:.4g}"


def _means(measured: Iterable[tuple[Climber, float]]) -> Sequence[tuple[float, ...]]:
    """Of every structure the mean loss of its seeds, and what is minimised beside it."""
    losses: defaultdict[str, list[float]] = defaultdict(list)
    others = dict[str, tuple[float, ...]]()
    for climber, loss in measured:
        losses[climber.digest].append(loss)
        others[climber.digest] = climber.others
    return [(statistics.fmean(each), *others[digest]) for digest, each in losses.items()]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _rungs(reduction: int, min_share: float) -> tuple[float, ...]:
    """From the first, the least share, to the last."""
    return tuple(sorted(reduction**-k for k in range(1, 5) if reduction**-k >= min_share))


def _bracket(pruner: Hyperband, number: int) -> int:
    """Brackets take turns; each begins a rung later than the one before, and the last one stops nobody (1603.06560)."""
    return number % (len(_rungs(pruner.reduction, pruner.min_share)) + 1)
