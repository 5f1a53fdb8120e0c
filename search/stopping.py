"""When trials, and the search, end before their time, as a user asks for it; ``pruning`` is the rule behind the pruners."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from einlayers.errors import FieldError
from search.checks import Number, Whole, check_number, check_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class NoPruner:
    """Every trial trains to the end."""

    kind: Literal["none"] = "none"

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stopping:
    """From ``min_share`` of its compute on, a trial is compared with those of at least ``startup_structures`` others."""

    min_share: Number = 0.125
    startup_structures: Whole = 8

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        # The first point of a learning curve lies at a sixteenth.
        check_number("min_share", self.min_share, 1 / 16, 1 / 2)
        check_whole("startup_structures", self.startup_structures, 1, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Halving(_Stopping):
    """At every rung the best of ``reduction`` structures goes on, with ``reduction`` times the compute."""

    reduction: Whole = 2

    def __post_init__(self) -> None:
        _Stopping.__post_init__(self)
        check_whole("reduction", self.reduction, 2, 4)
        if self.reduction == 3:
            raise FieldError("reduction", expected="2 or 4, as curves have points at powers of two", got=self.reduction)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessiveHalving(_Halving):
    """At every rung the best of ``reduction`` structures goes on, with ``reduction`` times the compute (1810.05934)."""

    kind: Literal["successive-halving"] = "successive-halving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperband(_Halving):
    """Successive halving in brackets that take turns, each with a first rung of its own, for losses that cross
    (1603.06560)."""

    kind: Literal["hyperband"] = "hyperband"


@dataclass(frozen=True, slots=True, kw_only=True)
class MedianRule(_Stopping):
    """At every point of its learning curve, the better half of the structures goes on."""

    kind: Literal["median"] = "median"

    reduction: ClassVar[int] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolation(_Stopping):
    """At every point of its learning curve, a trial goes on that may still become the best: one whose curve, drawn on as
    those of the others went on, ends within ``margin`` standard deviations of the lowest loss that there is (the predictive
    termination of Domhan et al., IJCAI 2015)."""

    kind: Literal["extrapolation"] = "extrapolation"
    min_share: Number = 0.25
    margin: Number = 2.5

    def __post_init__(self) -> None:
        # A curve is drawn on from two points, and its first one lies at a sixteenth.
        check_number("min_share", self.min_share, 1 / 8, 1 / 2)
        check_whole("startup_structures", self.startup_structures, 3, 10_000)
        check_number("margin", self.margin, 0.1, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """When a search ends by itself: when the last ``patience`` trials to end have lowered its best loss by no more than
    ``min_improvement``, as a share of it; without a patience, when one more trial, of the most promising structure, is
    expected to lower it by no more (``search.convergence``)."""

    patience: Whole | None = None
    min_improvement: Number = 0.0

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.patience is not None:
            check_whole("patience", self.patience, 1, 100_000)
        check_number("min_improvement", self.min_improvement, 0, 1)
        if self.patience is None and self.min_improvement == 0:
            raise FieldError("patience", expected="a patience, or a min_improvement above 0", got=None)


PrunerSpec = Annotated[NoPruner | SuccessiveHalving | Hyperband | MedianRule | Extrapolation, Discriminator("kind")]
