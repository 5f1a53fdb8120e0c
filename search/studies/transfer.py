"""Transfer checks: whether the learning rate that muP carries to a structure is near its best, at two widths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from einlayers.errors import FieldError
from einlayers.theta import NAMED, Theta
from search.checks import Number, Whole, check_whole
from search.plan import Run
from search.studies.base import Part, StudySettings, check_factors, check_structures


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCheck(StudySettings):
    """Train structures at two widths or more with multiples of the transferred learning rate, and look at their features.

    The widths are ``width_factors`` times the one that the proxy gives a structure.
    """

    kind: Literal["transfer_check"] = "transfer_check"
    structures: tuple[Theta, ...] = (NAMED["dense"], NAMED["btt"])
    width_factors: tuple[Number, ...] = (1.0, 2.0)
    lr_mults: tuple[Number, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    replicates: Whole = 2

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        StudySettings.__post_init__(self)
        check_structures(self.structures, at_least=1)
        check_factors("width_factors", self.width_factors)
        check_factors("lr_mults", self.lr_mults)
        check_whole("replicates", self.replicates, 1, 100)
        if len(self.width_factors) < 2:
            raise FieldError("width_factors", expected="two widths or more", got=self.width_factors)
        if 1.0 not in self.lr_mults or len(self.lr_mults) < 3:
            raise FieldError("lr_mults", expected="1 and at least two others", got=self.lr_mults)

    def widths_of(self, theta: Theta) -> Sequence[int]:
        """The widths of a structure, in ascending order."""
        width = self.proxy.width_for(theta)
        return sorted({self.proxy.nearest_width(factor * width) for factor in self.width_factors})

    def parts(self) -> Mapping[str, Part]:
        """``sweep``: every structure at every width and rate, once for each replicate."""
        runs = tuple(
            Run(theta=theta, width=width, lr_mult=mult)
            for _ in range(self.replicates)
            for theta in self.structures
            for width in self.widths_of(theta)
            for mult in sorted(self.lr_mults)
        )
        return {"sweep": Part(proxy=self.proxy, runs=runs, seed=self.seed)}


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthSweep:
    """A structure at one width: the mean loss at each multiple of the transferred rate, null where it diverged; the best
    one; and how much of the log of the loss the transferred rate gives away against it, null where it diverged."""

    width: int
    losses: Mapping[float, float | None]
    best_lr_mult: float
    regret: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpread:
    """The coordinate check of a kind of layer (2203.03466, appendix D.1): the largest over the smallest, over widths, of
    how large its outputs are at the start and of how far ten steps move them; null where one of them is zero."""

    features: float | None
    updates: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureTransfer:
    """Whether the rate transfers to a structure.

    ``transfers``: at every width the transferred rate is within a factor of two of the best one that was tried, or gives
    away less than ``NEGLIGIBLE`` of the log of the loss; and no kind of layer moves ``FLAT`` times as much at one width as
    at another.
    """

    theta: Theta
    sweeps: tuple[WidthSweep, ...]
    coordinates: Mapping[str, FeatureSpread]
    transfers: bool

    NEGLIGIBLE: ClassVar[float] = 0.03
    FLAT: ClassVar[float] = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What a transfer check has found."""

    kind: Literal["transfer_check"] = "transfer_check"
    structures: tuple[StructureTransfer, ...]
