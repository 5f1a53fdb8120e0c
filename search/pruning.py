"""Early stopping: which trials are not worth their whole compute, by what others had reached with as little.

Trials of a search are measured at the same shares of their compute, half powers of two (``workers.training``), at a constant
rate and with averaged weights, so that every point counts. Some of these are rungs, at which a trial goes on only where its
structure is among the best of those that have been there.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from search.stopping import Hyperband, MedianRule, NoPruner, PrunerSpec, SuccessiveHalving

POINT = 2**-0.25
"""A point belongs to the share that it is within this factor of: points lie at half powers of two, in whole steps."""

_POINTS = tuple(2 ** (-k / 2) for k in range(1, 9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Climber:
    """A trial of a search at a rung: its number, the model that it trains, its loss there, and at its end if it has one;
    and what the search minimises beside the loss."""

    number: int
    digest: str
    loss: float
    final_loss: float | None = None
    others: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a trial is stopped, and the loss that it would have had."""

    reason: str
    expected_loss: float


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
        case MedianRule():
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
    if isinstance(pruner, NoPruner):
        return None
    if isinstance(pruner, Hyperband):
        others = [each for each in others if _bracket(pruner, each.number) == _bracket(pruner, climber.number)]
    losses: defaultdict[str, list[float]] = defaultdict(list)
    costs: dict[str, tuple[float, ...]] = {}
    ratios = list[float]()
    for each in others:
        losses[each.digest].append(each.loss)
        costs[each.digest] = each.others
        if each.final_loss is not None and each.loss > 0:
            ratios.append(each.final_loss / each.loss)
    own = [*losses.pop(climber.digest, []), climber.loss]
    if len(own) < min(2, replicates) or len(losses) < pruner.startup_structures:
        return None
    mean = statistics.fmean(own)
    num_better = sum(
        _dominates((statistics.fmean(each), *costs[digest]), (mean, *climber.others)) for digest, each in losses.items()
    )
    if num_better < math.ceil((len(losses) + 1) / pruner.reduction):
        return None
    place = f"worse than {num_better} of {len(losses)} other structures"
    return Verdict(
        reason=f"at {point:.3g} of its compute with a loss of {mean:.4g}, {place}",
        expected_loss=climber.loss * statistics.median(ratios or [1.0]),
    )


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _rungs(reduction: int, min_share: float) -> tuple[float, ...]:
    """From the first, the least share, to the last."""
    return tuple(sorted(reduction**-k for k in range(1, 5) if reduction**-k >= min_share))


def _bracket(pruner: Hyperband, number: int) -> int:
    """Brackets take turns; each begins a rung later than the one before, and the last one stops nobody (1603.06560)."""
    return number % (len(_rungs(pruner.reduction, pruner.min_share)) + 1)
