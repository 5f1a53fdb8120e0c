"""Scaling studies: structures over widths, seeds and compute; what their loss follows, and what they are worth."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from einlayers.theta import NAMED, Theta
from search.checks import Number, Whole, check_whole
from search.plan import Run
from search.studies.base import Part, StudySettings, check_factors, check_structures
from search.studies.baseline import FrontierPoint, Multiplier
from search.studies.estimates import Estimate
from search.studies.laws import PowerLaw, SizeLaw


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingStudy(StudySettings):
    """Train structures, and dense to compare with, at several widths from several seeds, at ``lr_mults`` times the rate.

    This is done for ``compute_factors`` times the compute of the proxy. The widths for all of it are those at which a model
    costs ``size_factors`` times what the proxy's dense model costs, and for less compute smaller by the root of it, as the
    best size is (2203.15556). A multiplier that is to be published needs a rate that was tuned for each structure:
    ``"lr_mults": [0.5, 1, 2]``.
    """

    kind: Literal["scaling_study"] = "scaling_study"
    structures: tuple[Theta, ...] = (NAMED["monarch"], NAMED["btt"])
    size_factors: tuple[Number, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    compute_factors: tuple[Number, ...] = (1 / 16, 1.0)
    lr_mults: tuple[Number, ...] = (1.0,)
    replicates: Whole = 3

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        StudySettings.__post_init__(self)
        check_structures(self.structures, at_least=1)
        check_factors("size_factors", self.size_factors)
        check_factors("compute_factors", self.compute_factors)
        check_factors("lr_mults", self.lr_mults)
        check_whole("replicates", self.replicates, 2, 100)

    @property
    def thetas(self) -> tuple[Theta, ...]:
        """The structures, dense first, whether it was asked for or not."""
        return (NAMED["dense"], *(theta for theta in self.structures if not theta.is_dense))

    def parts(self) -> Mapping[str, Part]:
        """``structures``: every structure at every width and rate, once for each replicate; and ``dense``, the same of the
        plain model, which other studies share."""
        dense, *others = self.thetas
        parts = {"dense": Part(proxy=self.proxy.plain, runs=self._runs([dense]), seed=self.seed)}
        if others:
            parts["structures"] = Part(proxy=self.proxy, runs=self._runs(others), seed=self.seed + 1)
        return parts

    def _runs(self, thetas: Sequence[Theta]) -> tuple[Run, ...]:
        return tuple(
            Run(theta=theta, width=width, lr_mult=mult, train_flops=factor * self.proxy.train_flops)
            for _ in range(self.replicates)
            for theta in thetas
            for factor in sorted(self.compute_factors)
            for width in self.widths_of(theta, factor)
            for mult in sorted(self.lr_mults)
        )

    def widths_of(self, theta: Theta, compute_factor: float = 1.0) -> Sequence[int]:
        """The widths of a structure for some of the compute, in ascending order."""
        proxy = self.proxy.plain if theta.is_dense else self.proxy
        macs = proxy.dense_macs * math.sqrt(compute_factor)
        return sorted({proxy.width_near(theta, factor * macs) for factor in self.size_factors})


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPowerLaw:
    """``L(C) = E + A C^-b`` along the frontier, with intervals of its exponent and of the irreducible loss E."""

    law: PowerLaw
    exponent: Estimate
    irreducible: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedSizeLaw:
    """``L(N, D) = E + A N^-a + B D^-b`` over all runs, with intervals of its exponents and of the irreducible loss E."""

    law: SizeLaw
    params_exponent: Estimate
    data_exponent: Estimate
    irreducible: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureScaling:
    """A structure of a scaling study: its frontier, the laws that it follows, and its multiplier at each compute.

    ``bracketed``: at the end of the training its best width, and its best rate where several were tried, lie between
    others that did worse. Where that is not so, its multiplier may be too low.
    """

    theta: Theta
    frontier: tuple[FrontierPoint, ...]
    power_law: FittedPowerLaw
    size_law: FittedSizeLaw | None
    multipliers: tuple[Multiplier, ...]
    bracketed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What a scaling study has found, dense first; ``lr_tuned``: several rates were tried for every structure."""

    kind: Literal["scaling_study"] = "scaling_study"
    structures: tuple[StructureScaling, ...]
    lr_tuned: bool
