"""What a user may ask of the axes of theta: bounds, fixed exponents, ties; and the region that they leave of a subspace."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from einlayers.errors import FieldError
from einlayers.theta import AXES
from search.checks import Number, check_number
from search.space import SUBSPACES, Interval, Region

SubspaceName = Literal["full", "btt", "full-rank-btt", "low-rank", "kronecker", "tensor-train", "monarch"]
TieName = Literal["gamma=phi", "beta=delta", "alpha=epsilon"]

TIES: Mapping[TieName, tuple[str, str]] = {
    "gamma=phi": ("gamma", "phi"),
    "beta=delta": ("beta", "delta"),
    "alpha=epsilon": ("alpha", "epsilon"),
}
"""The pairs that can be tied: what an axis is to the input, the other is to the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The least and the greatest exponent of an axis; equal ones fix it.

    Raises:
        FieldError: a bound is not a number from 0 to 1, or the lower one exceeds the upper one.
    """

    min: Number = 0.0
    max: Number = 1.0

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_number("min", self.min, 0, 1)
        check_number("max", self.max, 0, 1)
        if self.min > self.max:
            raise FieldError("max", expected=f"at least min, which is {self.min:g}", got=self.max)


def _fixed(bounds: object) -> object:
    """The bounds that fix an axis, where a number was given."""
    is_number = isinstance(bounds, (int, float)) and not isinstance(bounds, bool)
    return Bounds(min=bounds, max=bounds) if is_number else bounds  # type: ignore[arg-type]  # it is a number


AxisBounds = Annotated[Bounds, BeforeValidator(_fixed, json_schema_input_type=Bounds | Number)]
"""Bounds; in JSON also a number, which fixes the axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Bounds of the axes of theta; an axis without any may be whatever the others leave."""

    alpha: AxisBounds | None = None
    beta: AxisBounds | None = None
    gamma: AxisBounds | None = None
    delta: AxisBounds | None = None
    epsilon: AxisBounds | None = None
    phi: AxisBounds | None = None
    rho: AxisBounds | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    @property
    def intervals(self) -> Mapping[str, Interval]:
        """The bounds of every axis that has some."""
        given = {axis: getattr(self, axis) for axis in AXES}
        return {axis: (bounds.min, bounds.max) for axis, bounds in given.items() if bounds is not None}


@lru_cache(maxsize=1024)
def region_of(subspace: SubspaceName, axes: Axes, ties: tuple[TieName, ...]) -> Region:
    """What bounds and ties leave of a subspace.

    Raises:
        FieldError: nothing; the error says from which axis on, and what was left of it.
    """
    region, so_far = SUBSPACES[subspace], str(subspace)
    for axis, (low, high) in axes.intervals.items():
        try:
            narrowed = region.within({axis: (low, high)})
        except FieldError as error:
            expected = f"bounds of {axis} that meet {_shown(region, axis)}, which is what {so_far} leaves"
            raise FieldError("axes", expected=expected, got={"min": low, "max": high}) from error
        region, so_far = narrowed, f"{so_far} with {axis} from {low:g} to {high:g}"
    for tie in ties:
        one, other = TIES[tie]
        try:
            narrowed = region.within({}, [(one, other)])
        except FieldError as error:
            left = f"{one} from {_shown(region, one)} and {other} from {_shown(region, other)}"
            raise FieldError("ties", expected=f"ties that can be kept with {left}, in {so_far}", got=tie) from error
        region, so_far = narrowed, f"{so_far} with {tie}"
    return region


def _shown(region: Region, axis: str) -> str:
    low, high = region.span(axis)
    return f"{low:.6g} to {high:.6g}"
