"""Regions with bounds and ties: what is drawn keeps them, all that keeps them is drawn, and once."""

import math
import random

import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from einlayers.errors import FieldError
from einlayers.taxonomy import taxonomy
from einlayers.theta import AXES, NAMED, Theta
from search.space import FACE, SUBSPACES, Interval, Region, Unit
from tests import strategies

NEAR = 1e-8
"""Exponents that differ by less are equal; the region itself allows for 1e-9 at every coordinate."""

PAIRS = (("gamma", "phi"), ("beta", "delta"), ("alpha", "epsilon"))

_ends = st.one_of(st.integers(0, 10).map(lambda tenths: tenths / 10), st.floats(0, 1, allow_subnormal=False))
_intervals = st.one_of(
    _ends.map(lambda end: (end, end)),
    _ends.map(lambda end: (0.0, end)),
    _ends.map(lambda end: (end, 1.0)),
    st.tuples(_ends, _ends).map(lambda ends: (min(ends), max(ends))),
)
boxes: SearchStrategy[dict[str, Interval]] = st.dictionaries(st.sampled_from(AXES), _intervals, max_size=4)
ties: SearchStrategy[list[tuple[str, str]]] = st.lists(st.sampled_from(PAIRS), max_size=2, unique=True)
units = st.tuples(*[st.floats(0, 1, allow_subnormal=False)] * 5)


def _region(bounds: dict[str, Interval], tied: list[tuple[str, str]], subspace: str = "full") -> Region:
    """The region, if it is not empty."""
    try:
        return SUBSPACES[subspace].within(bounds, tied)
    except FieldError:
        reject()


def _theta(region: Region, unit: Unit) -> Theta:
    return region.to_theta(unit[: region.num_coordinates])


def _canonical_forms(theta: Theta) -> list[Theta]:
    """By the definition, and with room for rounding: where the smaller of alpha and epsilon is not the smaller pair's."""
    forms = (theta, theta.swapped())
    return [form for form in forms if min(form.alpha, form.epsilon) >= min(form.beta, form.delta) - NEAR]


def _keeps(theta: Theta, bounds: dict[str, Interval], tied: list[tuple[str, str]], margin: float) -> bool:
    """Whether a canonical form keeps all bounds, with a margin to each, or nearly where that is negative."""
    return any(
        all(low + margin <= getattr(form, axis) <= high - margin for axis, (low, high) in bounds.items())
        and all(abs(getattr(form, one) - getattr(form, other)) < max(0.0, -margin) for one, other in tied)
        for form in _canonical_forms(theta)
    )


def _distance(one: Theta, other: Theta) -> float:
    return min(
        max(abs(a - b) for a, b in zip(one.exponents, form.exponents, strict=True)) for form in (other, other.swapped())
    )


class TestToTheta:
    @given(bounds=boxes, tied=ties, subspace=st.sampled_from(list(SUBSPACES)), unit=units)
    def test_keeps_bounds_ties_and_subspace(
        self, bounds: dict[str, Interval], tied: list[tuple[str, str]], subspace: str, unit: Unit
    ) -> None:
        theta = _theta(_region(bounds, tied, subspace), unit)
        assert theta.is_canonical
        assert theta.rho <= min(theta.alpha, theta.epsilon) + NEAR
        assert _keeps(theta, bounds, tied, -NEAR)
        assert SUBSPACES[subspace].to_unit(theta) is not None

    @given(bounds=boxes, tied=ties, unit=units)
    def test_sums_to_one(self, bounds: dict[str, Interval], tied: list[tuple[str, str]], unit: Unit) -> None:
        theta = _theta(_region(bounds, tied), unit)
        assert math.fsum(theta.exponents[:3]) == pytest.approx(1, abs=1e-12)
        assert math.fsum(theta.exponents[3:6]) == pytest.approx(1, abs=1e-12)


class TestToUnit:
    @given(bounds=boxes, tied=ties, unit=units)
    def test_comes_back_to_the_same_theta(
        self, bounds: dict[str, Interval], tied: list[tuple[str, str]], unit: Unit
    ) -> None:
        region = _region(bounds, tied)
        theta = _theta(region, unit)
        back = region.to_unit(theta)
        assert back is not None
        assert len(back) == region.num_coordinates
        assert all(0 <= coordinate <= 1 for coordinate in back)
        assert region.to_unit(theta.swapped()) == back
        assert _distance(region.to_theta(back), theta) < NEAR

    @given(bounds=boxes, theta=strategies.thetas())
    def test_places_every_theta_that_keeps_the_bounds_and_no_other(
        self, bounds: dict[str, Interval], theta: Theta
    ) -> None:
        try:
            region = SUBSPACES["full"].within(bounds)
        except FieldError:
            region = None
        is_inside = region is not None and region.to_unit(theta) is not None
        fits = SUBSPACES["full"].to_unit(theta) is not None
        if fits and _keeps(theta, bounds, [], NEAR):
            assert is_inside
        if is_inside:
            assert fits
            assert _keeps(theta, bounds, [], -NEAR)


class TestCoordinates:
    @given(bounds=boxes, tied=ties, unit=st.tuples(*[st.floats(0.25, 0.75)] * 5))
    def test_show_no_structure_twice(
        self, bounds: dict[str, Interval], tied: list[tuple[str, str]], unit: Unit
    ) -> None:
        region = _region(bounds, tied)
        inside = unit[: region.num_coordinates]
        widths = [high - low for low, high in map(region.span, AXES) if high > low + NEAR]
        assume(min(widths, default=1.0) > 1e-3)  # the inverse of a map onto less is rounding
        assert region.to_unit(region.to_theta(inside)) == pytest.approx(inside, abs=1e-3)

    @pytest.mark.parametrize(
        ("bounds", "tied", "num_coordinates"),
        [
            ({}, [("gamma", "phi")], 4),
            ({}, [("beta", "delta")], 4),
            ({}, [("gamma", "phi"), ("beta", "delta")], 3),
            ({}, list(PAIRS), 3),
            ({"rho": (0.25, 0.25)}, [], 4),
            ({"gamma": (0.1, 0.4), "alpha": (0.5, 0.5)}, [], 4),
            ({"alpha": (0.0, 0.3), "beta": (0.0, 0.3), "gamma": (0.0, 0.4)}, [], 3),
            ({"epsilon": (0.7, 1.0), "phi": (0.3, 1.0)}, [], 3),
            ({"alpha": (0.0, 0.0), "delta": (0.0, 0.0), "gamma": (0.5, 0.5), "phi": (0.5, 0.5)}, [], 0),
        ],
        ids=str,
    )
    def test_are_as_many_as_there_are_degrees_of_freedom(
        self, bounds: dict[str, Interval], tied: list[tuple[str, str]], num_coordinates: int
    ) -> None:
        assert SUBSPACES["full"].within(bounds, tied).num_coordinates == num_coordinates

    @pytest.mark.parametrize(
        "bounds",
        [
            {"alpha": (0.2, 0.2), "beta": (0.2, 0.2)},
            {"delta": (0.1, 0.1), "epsilon": (0.1, 0.1)},
            {"alpha": (0.2, 0.2), "beta": (0.2, 0.2), "delta": (0.3, 0.5), "epsilon": (0.1, 0.6)},
        ],
        ids=str,
    )
    def test_show_no_structure_twice_where_a_side_is_split_evenly(self, bounds: dict[str, Interval]) -> None:
        # Its swap keeps the bounds as well, or not, and both are canonical.
        region, draw = SUBSPACES["full"].within(bounds), random.Random(0)
        for _ in range(300):
            inside = tuple(draw.uniform(0.25, 0.75) for _ in range(region.num_coordinates))
            assert region.to_unit(region.to_theta(inside)) == pytest.approx(inside, abs=1e-6)

    def test_of_bounds_that_tell_the_factors_apart_hold_both_orders_of_beta_and_alpha(self) -> None:
        # With delta 0 the canonical form can have any split of the input.
        region, draw = SUBSPACES["full"].within({"delta": (0.0, 0.0)}), random.Random(0)
        thetas = [region.to_theta(tuple(draw.random() for _ in range(region.num_coordinates))) for _ in range(500)]
        assert sum(theta.beta > theta.alpha for theta in thetas) > 50
        assert sum(theta.beta < theta.alpha for theta in thetas) > 50
        assert all(theta.delta == 0 for theta in thetas)


class TestFaces:
    def test_keep_their_part_where_an_exponent_may_be_0(self) -> None:
        region = SUBSPACES["full"].within({"gamma": (0.0, 0.5), "rho": (0.0, 0.1), "alpha": (0.2, 1.0)})
        thetas = _drawn(region)
        for axis in ("gamma", "beta", "phi", "rho"):
            share = sum(getattr(theta, axis) == 0 for theta in thetas) / len(thetas)
            assert share == pytest.approx(FACE, abs=0.05)

    def test_are_none_where_a_bound_is_above_0(self) -> None:
        low, high = 0.1, 0.4
        gammas = [theta.gamma for theta in _drawn(SUBSPACES["full"].within({"gamma": (low, high)}))]
        for share in (0.0, 0.1, 0.5, 0.9):
            found = sum(gamma <= low + share * (high - low) for gamma in gammas) / len(gammas)
            assert found == pytest.approx(share, abs=0.05)


class TestEmptyRegions:
    @pytest.mark.parametrize(
        ("subspace", "bounds", "tied"),
        [
            ("full", {"alpha": (0.6, 1.0), "gamma": (0.6, 1.0)}, []),
            ("full", {"alpha": (0.0, 0.3), "beta": (0.0, 0.3), "gamma": (0.0, 0.3)}, []),
            ("full", {"rho": (0.6, 1.0), "alpha": (0.0, 0.5)}, []),
            ("full", {"gamma": (0.6, 1.0), "phi": (0.0, 0.5)}, [("gamma", "phi")]),
            ("full", {"alpha": (0.0, 0.3), "beta": (0.4, 1.0), "delta": (0.4, 1.0)}, []),
            ("btt", {"beta": (0.1, 1.0)}, []),
            ("full-rank-btt", {"gamma": (0.0, 0.3), "phi": (0.0, 0.3), "rho": (0.0, 0.3)}, []),
            ("kronecker", {"rho": (0.25, 0.25)}, []),
            ("monarch", {"alpha": (0.0, 0.4)}, []),
        ],
        ids=str,
    )
    def test_are_refused(self, subspace: str, bounds: dict[str, Interval], tied: list[tuple[str, str]]) -> None:
        with pytest.raises(FieldError, match="bounds that some theta keeps"):
            SUBSPACES[subspace].within(bounds, tied)

    @given(bounds=boxes, tied=ties, theta=strategies.thetas())
    def test_are_not_those_that_hold_a_theta(
        self, bounds: dict[str, Interval], tied: list[tuple[str, str]], theta: Theta
    ) -> None:
        canonical = theta.canonical().normalised()
        around = {axis: _around(getattr(canonical, axis), interval) for axis, interval in bounds.items()}
        assume(SUBSPACES["full"].to_unit(theta) is not None)
        kept = [pair for pair in tied if getattr(canonical, pair[0]) == getattr(canonical, pair[1])]
        assert SUBSPACES["full"].within(around, kept).to_unit(canonical) is not None


class TestSpan:
    @pytest.mark.parametrize(
        ("subspace", "bounds", "axis", "span"),
        [
            ("full", {}, "alpha", (0, 1)),
            ("full", {}, "rho", (0, 1)),
            ("full", {"alpha": (0.6, 1.0)}, "gamma", (0, 0.4)),
            ("full", {"alpha": (0.0, 0.3)}, "rho", (0, 0.3)),
            ("full", {"rho": (0.25, 1.0)}, "gamma", (0, 0.75)),
            ("btt", {}, "beta", (0, 0)),
            ("monarch", {}, "alpha", (0.5, 1)),
            ("full-rank-btt", {"rho": (0.0, 0.2), "gamma": (0.0, 0.5)}, "phi", (0.3, 1)),
        ],
        ids=str,
    )
    def test_is_what_is_left_of_an_axis(
        self, subspace: str, bounds: dict[str, Interval], axis: str, span: Interval
    ) -> None:
        assert SUBSPACES[subspace].within(bounds).span(axis) == pytest.approx(span, abs=1e-9)


class TestNamedSubspaces:
    def test_of_full_rank_stay_so_within_bounds(self) -> None:
        for theta in _drawn(SUBSPACES["full-rank-btt"].within({"rho": (0.1, 0.3), "gamma": (0.2, 0.6)})):
            assert (taxonomy(theta).omega, taxonomy(theta).psi) == (0, 1)

    def test_of_monarchs_are_bounded_by_their_blocks(self) -> None:
        region = SUBSPACES["monarch"].within({"gamma": (0.2, 0.4)})
        assert region.to_theta((0.5,)).exponents == pytest.approx((0.7, 0, 0.3, 0, 0.7, 0.3, 0.4))
        assert region.to_unit(NAMED["monarch"]) is None

    def test_hold_the_papers_kronecker_product_in_either_form(self) -> None:
        # (0.33|0.67|0|0.33|0.67|0|0) is as canonical as its swap, which is the one that is kept.
        fixed = {"alpha": (0.33, 0.33), "beta": (0.67, 0.67), "delta": (0.33, 0.33), "epsilon": (0.67, 0.67)}
        region = SUBSPACES["full"].within(fixed | {"rho": (0.0, 0.0)})
        assert region.num_coordinates == 0
        assert region.to_theta(()) == Theta.parse("(0.33|0.67|0|0.33|0.67|0|0)")


def _drawn(region: Region) -> list[Theta]:
    draw = random.Random(0)
    return [region.to_theta(tuple(draw.random() for _ in range(region.num_coordinates))) for _ in range(1000)]


def _around(value: float, interval: Interval) -> Interval:
    """The interval, widened to hold a value."""
    low, high = interval
    return min(low, value), max(high, value)
