"""The dense baseline of a proxy: what loss a dense model reaches with how much compute, at its best width."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import ClassVar, Literal

from einlayers.errors import FieldError
from einlayers.theta import NAMED
from search.checks import Number, Whole, check_number, check_whole
from search.plan import Run
from search.proxies.registry import ProxySpec
from search.studies.base import Part, StudySettings, check_factors

_LEVEL = 0.95
_BEYOND = 50.0
_SLOPE_OVER = 4.0
"""Beyond its ends a frontier goes on as over so many times its last compute, rather than over the noise of two points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline(StudySettings):
    """Train dense models of several widths around ``dense_width`` from several seeds, at ``lr_mults`` times the rate.

    They train on for ``headroom`` times the compute of the proxy, so that a structure which is worth more than dense can be
    compared without guessing.
    """

    kind: Literal["baseline"] = "baseline"
    width_factors: tuple[Number, ...] = (0.5, 0.7, 1.0, 1.4, 2.0)
    lr_mults: tuple[Number, ...] = (1.0,)
    replicates: Whole = 4
    headroom: Number = 2.0

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        StudySettings.__post_init__(self)
        check_factors("width_factors", self.width_factors)
        check_factors("lr_mults", self.lr_mults)
        check_whole("replicates", self.replicates, 2, 100)
        check_number("headroom", self.headroom, 1, 64)

    @property
    def subject(self) -> ProxySpec:
        """The plain model."""
        return self.proxy.plain

    def parts(self) -> Mapping[str, Part]:
        """``dense``: every width at every rate, once for each replicate."""
        proxy = self.subject
        widths = sorted({proxy.nearest_width(factor * proxy.dense_width) for factor in self.width_factors})
        runs = tuple(
            Run(theta=NAMED["dense"], width=width, lr_mult=mult, train_flops=self.headroom * proxy.train_flops)
            for _ in range(self.replicates)
            for width in widths
            for mult in sorted(self.lr_mults)
        )
        return {"dense": Part(proxy=proxy, runs=runs, seed=self.seed)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiplier:
    """How many times the compute of a structure dense needs for the same loss, with its 95% interval.

    ``extrapolated``: dense was not trained with as much, or with as little, compute, and its frontier was continued.
    """

    value: float
    low: float
    high: float
    extrapolated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The best model of a structure at some compute: its width and rate, and the losses from every seed.

    ``bracketed``: a narrower and a wider model were trained and did worse there.
    """

    train_flops: float
    width: int
    lr_mult: float
    losses: tuple[float, ...]
    bracketed: bool

    @property
    def log_loss(self) -> float:
        """The mean of the logarithms."""
        return fmean(map(math.log, self.losses))


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFrontier:
    """What a baseline has found: the best dense model at each compute, in ascending order of it."""

    kind: Literal["baseline"] = "baseline"
    points: tuple[FrontierPoint, ...]

    def multiplier(self, losses: Sequence[float], train_flops: float) -> Multiplier:
        """The compute multiplier of a structure that reached these losses, one a seed, with so much compute.

        The interval counts the noise of the structure's seeds and of the dense ones (Student's t, Welch's degrees of
        freedom); the structure's is unknown with a single seed, and taken to be that of dense.

        Raises:
            FieldError: there is no loss, or one that is no positive number.
        """
        if not losses or not all(math.isfinite(loss) and loss > 0 for loss in losses):
            raise FieldError("losses", expected="positive numbers, at least one", got=losses)
        log_losses = [math.log(loss) for loss in losses]
        middle = fmean(log_losses)
        value = self._log_compute(middle) - math.log(train_flops)
        dense = [self._log_compute(middle, seed) for seed in range(len(self.points[0].losses))]
        own = [self._log_compute(log_loss) for log_loss in log_losses]
        # One structure's mean over its seeds, against dense's over its own.
        parts = [(variance(dense) / len(dense), len(dense) - 1)]
        parts.append((variance(own) / len(own), len(own) - 1) if len(own) > 1 else (variance(dense), len(dense) - 1))
        margin = _margin(parts)
        return Multiplier(
            value=_exp(value),
            low=_exp(value - margin),
            high=_exp(value + margin),
            extrapolated=not self.points[-1].log_loss <= middle <= self.points[0].log_loss,
        )

    def _log_compute(self, log_loss: float, seed: int | None = None) -> float:
        """The log of the compute at which dense reaches a loss: of one seed's, or of the mean over them."""
        xs = [math.log(point.train_flops) for point in self.points]
        ys = [point.log_loss if seed is None else math.log(point.losses[seed]) for point in self.points]
        if log_loss > ys[0]:
            return xs[0] + (log_loss - ys[0]) / self._slope(0, next(i for i, x in enumerate(xs) if _far(x - xs[0])))
        for (x0, y0), (x1, y1) in zip(zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False):
            if y1 <= log_loss <= y0:
                return x0 if y0 == y1 else x0 + (x1 - x0) * (log_loss - y0) / (y1 - y0)
        back = next(i for i in reversed(range(len(xs))) if _far(xs[-1] - xs[i]))
        return xs[-1] + (log_loss - ys[-1]) / self._slope(back, len(xs) - 1)

    def _slope(self, first: int, last: int) -> float:
        """The fall of the mean log loss with the log of the compute, which seeds share; never uphill."""
        a, b = self.points[first], self.points[last]
        return min(-1e-3, (b.log_loss - a.log_loss) / math.log(b.train_flops / a.train_flops))


def _exp(value: float) -> float:
    # Where dense never gets there, its frontier is continued for ever; JSON knows no infinity.
    return math.exp(max(-_BEYOND, min(_BEYOND, value)))


def _far(distance: float) -> bool:
    return distance >= math.log(_SLOPE_OVER) * (1 - 1e-6)


def _margin(parts: Sequence[tuple[float, int]]) -> float:
    """Half of the interval of a sum of means, of their variances and degrees of freedom (Welch, Biometrika 34, 1947)."""
    # SciPy is for those who have a baseline to compare with.
    from scipy.special import stdtrit

    total = math.fsum(part for part, _ in parts)
    if total == 0:
        return 0.0
    freedom = total**2 / math.fsum(part**2 / df for part, df in parts)
    return float(stdtrit(freedom, (1 + _LEVEL) / 2)) * math.sqrt(total)
