"""The best that a structure reaches at each compute, over the widths and learning rates that it was trained with."""

# R replicates, K levels of compute

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from einlayers.errors import FieldError
from search.studies.base import Measured
from search.studies.baseline import FrontierPoint

Logs = npt.NDArray[np.float64]

_NUM_LEVELS = 9
_SPAN = 2.0 ** ((_NUM_LEVELS - 1) / 2)
_BELOW = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A width, learning rate and budget of a structure, with the log of the loss from every seed at each level, infinite
    where it was not trained so far, or its curve begins later: ``(R, K)``."""

    width: int
    params: int
    macs: int
    lr_mult: float
    log_losses_RK: Logs

    @property
    def mean_K(self) -> Logs:
        """Over the seeds; infinite where one diverged."""
        return np.asarray(self.log_losses_RK.mean(axis=0))

    @property
    def last(self) -> int:
        """The level at which the training ends."""
        return int(np.flatnonzero(np.isfinite(self.mean_K))[-1])


def levels_below(train_flops: float, lowest: float | None = None) -> Logs:
    """The compute at which curves have their points, ascending: ``train_flops`` times 2**(-k/2), as far down as the curves
    of runs of ``lowest`` training FLOPs go."""
    num = _NUM_LEVELS + (0 if lowest is None else round(2 * math.log2(train_flops / lowest)))
    return np.asarray(train_flops * 2.0 ** (-np.arange(num)[::-1] / 2))


def candidates_of(runs: Sequence[Measured], levels_K: Logs) -> list[Candidate]:
    """The runs of one structure, by width and rate, in ascending order of both."""
    grouped: dict[tuple[int, float, float], list[Measured]] = {}
    for run in runs:
        grouped.setdefault((run.width, run.run.lr_mult or 1.0, run.train_flops), []).append(run)
    return [
        Candidate(
            width=width,
            params=group[0].params,
            macs=group[0].macs,
            lr_mult=lr_mult,
            log_losses_RK=np.stack([_at_levels(run, levels_K) for run in group]),
        )
        for (width, lr_mult, _), group in sorted(grouped.items(), key=lambda item: item[0])
    ]


def frontier_of(candidates: Sequence[Candidate], levels_K: Logs) -> tuple[FrontierPoint, ...]:
    """The candidate with the lowest mean log loss at each level.

    Raises:
        FieldError: at some level every candidate diverged from some seed.
    """
    means = np.stack([candidate.mean_K for candidate in candidates])
    if not np.isfinite(means).any(axis=0).all():
        raise FieldError("structures", expected="one width and rate that can be trained from every seed", got="none")
    best_K = means.argmin(axis=0)
    return tuple(
        FrontierPoint(
            train_flops=float(level),
            width=candidates[best].width,
            lr_mult=candidates[best].lr_mult,
            losses=tuple(np.exp(candidates[best].log_losses_RK[:, k]).tolist()),
            bracketed=_is_between(
                [each.width for each in candidates if np.isfinite(each.mean_K[k])], candidates[best].width
            ),
        )
        for k, (level, best) in enumerate(zip(levels_K, best_K, strict=True))
    )


def by_structure(runs: Sequence[Measured]) -> Mapping[object, list[Measured]]:
    """Runs by the theta that was planned, in the order in which each came first."""
    grouped: dict[object, list[Measured]] = {}
    for run in runs:
        grouped.setdefault(run.run.theta, []).append(run)
    return grouped


def _is_between(values: Sequence[float], value: float) -> bool:
    return min(values) < value < max(values)


def _at_levels(run: Measured, levels_K: Logs) -> Logs:
    """The log of the run's loss at each level, straight between the points of its curve in logarithms."""
    if not math.isfinite(run.loss) or not run.curve:
        return np.full(len(levels_K), np.inf)
    compute = np.log([point.train_flops for point in run.curve])
    values = np.interp(np.log(levels_K), compute, np.log([point.loss for point in run.curve]))
    # A curve's points are a little off, since there are no parts of steps.
    inside = (levels_K > _BELOW * run.train_flops / _SPAN) & (levels_K < run.train_flops / _BELOW)
    return np.where(inside, values, np.inf)
