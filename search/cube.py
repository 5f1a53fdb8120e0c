"""The unit cube of a whole search: the coordinates of its region of theta, and beside them those of what else it chooses.

A whole number has an interval of its coordinate, as long as log(1 + 1/n), so that doubling a number is as far everywhere.
The interval of ``top_k`` depends on the number of experts: whatever the point, a token takes no more than there are.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import ClassVar

from einlayers.errors import FieldError
from einlayers.taxonomy import taxonomy
from einlayers.theta import Theta
from search.checks import Whole, check_whole
from search.designs import GRIDS
from search.proxies.registry import ProxySpec
from search.proxies.shapes import MAX_EXPERTS, GroupName, GroupThetas
from search.space import Region, Unit
from search.variant import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRange:
    """The whole numbers from ``min`` to ``max``, both of them included.

    Raises:
        FieldError: there is none.
    """

    min: Whole
    max: Whole

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_whole("min", self.min, 1, MAX_EXPERTS)
        check_whole("max", self.max, self.min, MAX_EXPERTS)

    @property
    def is_single(self) -> bool:
        """Whether there is one number only."""
        return self.min == self.max

    def at(self, u: float) -> int:
        """The number in whose interval the coordinate is."""
        number = int(self.min * ((self.max + 1) / self.min) ** u)
        return min(self.max, max(self.min, number))

    def middle(self, number: int) -> float:
        """The middle of a number's interval."""
        return math.log(math.sqrt(number * (number + 1)) / self.min) / math.log((self.max + 1) / self.min)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureAxes:
    """Which whole numbers of its proxy's mixture a search chooses: how many experts there are, and how many of them a token
    takes. One that is not given stays as the proxy has it.

    Raises:
        FieldError: neither is given.
    """

    num_experts: WholeRange | None = None
    top_k: WholeRange | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.num_experts is None and self.top_k is None:
            raise FieldError("num_experts", expected="a range of num_experts, of top_k, or of both", got=None)

    def on(self, proxy: ProxySpec) -> "ExpertAxes":
        """The same for the mixture of a proxy, which says what is not given here.

        Raises:
            FieldError: it has none; or some number of experts is less than the least ``top_k``, or the greatest ``top_k``
                more than all of them.
        """
        own = proxy.mixture
        if own is None:
            expected = (
                "none where the proxy has no mixture, which says what is a mixture of experts and what keeps it even"
            )
            raise FieldError("mixture", expected=expected, got=self)
        return ExpertAxes(
            num_experts=self.num_experts or WholeRange(min=own.num_experts, max=own.num_experts),
            top_k=self.top_k or WholeRange(min=own.top_k, max=own.top_k),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAxes:
    """The coordinates of a mixture's whole numbers: one for each that is not the same everywhere.

    Raises:
        FieldError: some number of experts is less than the least ``top_k``, or the greatest ``top_k`` more than all of them.
    """

    num_experts: WholeRange
    top_k: WholeRange

    def __post_init__(self) -> None:
        experts, top_k = self.num_experts, self.top_k
        if top_k.min > experts.min:
            expected = f"at least {top_k.min} experts, as a token takes so many"
            raise FieldError("num_experts", expected=expected, got=experts.min)
        if top_k.max > experts.max:
            raise FieldError("top_k", expected=f"at most the {experts.max} experts that there are", got=top_k.max)

    @property
    def num_coordinates(self) -> int:
        """0, 1 or 2."""
        return sum(not axis.is_single for axis in (self.num_experts, self.top_k))

    def to_numbers(self, unit: Unit) -> tuple[int, int]:
        """How many experts there are at a point, and how many a token takes."""
        coordinates = iter(unit)
        experts = self.num_experts.min if self.num_experts.is_single else self.num_experts.at(next(coordinates))
        chosen = self.top_k.min if self.top_k.is_single else self._top_k_of(experts).at(next(coordinates))
        return experts, chosen

    def to_unit(self, experts: int, chosen: int) -> Unit | None:
        """The point of these numbers, the middle of their intervals; None where they are outside of the ranges."""
        if not self.num_experts.min <= experts <= self.num_experts.max:
            return None
        top_k = self._top_k_of(experts)
        if not top_k.min <= chosen <= top_k.max:
            return None
        places = ((self.num_experts, self.num_experts, experts), (self.top_k, top_k, chosen))
        return tuple(within.middle(number) for whole, within, number in places if not whole.is_single)

    def _top_k_of(self, experts: int) -> WholeRange:
        return WholeRange(min=self.top_k.min, max=min(self.top_k.max, experts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What a search chooses for a trial: a structure, and the variant of its proxy's model, None for the proxy's own."""

    theta: Theta
    variant: Variant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cube:
    """The designs that a search can choose on its proxy: a theta of a region; numbers of the proxy's mixture, where there
    are axes for them; and for each of some groups of layers a theta of its own, of the same region."""

    region: Region
    proxy: ProxySpec
    experts: ExpertAxes | None = None
    groups: tuple[GroupName, ...] = ()

    @property
    def num_coordinates(self) -> int:
        """Those of the region, of the mixture, and again of the region for each of the groups."""
        return (1 + len(self.groups)) * self.region.num_coordinates + self._num_numbers

    def to_design(self, unit: Unit) -> Design:
        """The design at a point of the cube."""
        coordinates = iter(unit)

        def theta() -> Theta:
            return self.region.to_theta(tuple(islice(coordinates, self.region.num_coordinates)))

        main = theta()
        num_experts, top_k = None, None
        if self.experts is not None:
            num_experts, top_k = self.experts.to_numbers(tuple(islice(coordinates, self._num_numbers)))
        thetas = GroupThetas(**{group: theta() for group in self.groups}) if self.groups else None
        if self.experts is None and thetas is None:
            return Design(theta=main)
        return Design(theta=main, variant=Variant(num_experts=num_experts, top_k=top_k, thetas=thetas))

    def to_unit(self, theta: Theta, variant: Variant | None = None) -> Unit | None:
        """A point of a design; None where the search cannot choose it."""
        place = self.region.to_unit(theta)
        if variant is None and self.experts is None and not self.groups:
            return place
        numbers, others = self._place_numbers(variant), self._place_groups(theta, variant)
        if place is None or numbers is None or others is None:
            return None
        return place + numbers + others

    def describe(self, unit: Unit) -> tuple[float, ...]:
        """The features that tell what the design at a point is: the exponents of every structure and their taxonomy, of the
        two forms of a structure that with beta at most alpha; and the coordinates of the mixture."""
        design = self.to_design(unit)
        size = self.region.num_coordinates
        thetas = [design.theta, *(design.variant.group_thetas.values() if design.variant else ())]
        return (*unit[size : size + self._num_numbers], *(feature for theta in thetas for feature in _features(theta)))

    @property
    def landmarks(self) -> tuple[Unit, ...]:
        """The points of the known designs that the search can choose; not of dense, beside which every search stands."""
        thetas = dict.fromkeys(theta for grid in GRIDS.values() for theta in grid if not theta.is_dense)
        return tuple(unit for theta in thetas if (unit := self.to_unit(theta)) is not None)

    @property
    def _num_numbers(self) -> int:
        return self.experts.num_coordinates if self.experts else 0

    def _place_numbers(self, variant: Variant | None) -> Unit | None:
        own = self.proxy.mixture
        if own is None:
            return () if variant is None or variant.num_experts is variant.top_k is None else None
        usual = own.num_experts, own.top_k
        numbers = variant.numbers(own) if variant else usual
        if self.experts is not None:
            return _place(self.experts, *numbers)
        return () if numbers == usual else None

    def _place_groups(self, theta: Theta, variant: Variant | None) -> Unit | None:
        own = variant.group_thetas if variant else {}
        if any(self.proxy.group_thetas.get(group) != own[group] for group in own.keys() - self.groups):
            return None
        unit: Unit = ()
        for group in self.groups:
            place = self.region.to_unit(own.get(group, theta))
            if place is None:
                return None
            unit += place
        return unit


@lru_cache(maxsize=65536)
def _place(axes: ExpertAxes, num_experts: int, top_k: int) -> Unit | None:
    # Every ask places the whole history anew, as ``search.space`` says.
    return axes.to_unit(num_experts, top_k)


def _features(theta: Theta) -> tuple[float, ...]:
    folded = theta if theta.beta <= theta.alpha else theta.swapped()
    coordinates = taxonomy(theta)
    return (*folded.exponents, coordinates.omega, coordinates.psi, coordinates.nu)
