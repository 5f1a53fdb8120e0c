import math
import random
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from einlayers.taxonomy import classify, taxonomy
from einlayers.theta import NAMED, Theta
from search.space import FACE, SUBSPACES, Region, Unit
from tests import strategies

ROUND_TRIP = 1.1e-9
"""Shares of up to 1e-9 count as zero; the rest is rounding."""

NAMES = list(SUBSPACES)
FAMILIES = {
    "btt": {"btt", "monarch", "low-rank", "dense"},
    "full-rank-btt": {"btt", "monarch", "low-rank", "dense"},
    "low-rank": {"low-rank"},
    "kronecker": {"kronecker", "low-rank", "dense"},
    "tensor-train": {"tensor-train", "kronecker", "low-rank", "dense"},
    "monarch": {"monarch", "low-rank"},
}

units = st.tuples(*[st.floats(0, 1, allow_subnormal=False)] * 5)
"""Points of a cube with as many coordinates as any subspace has; each takes the first that it needs."""

GOLDEN: dict[str, list[tuple[Unit, tuple[float, ...]]]] = {
    "full": [
        ((0.4, 0.66, 0.71, 0.05, 0.3), (0.534375, 0.215625, 0.25, 0.0, 0.3625, 0.6375, 0.0453125)),
        ((0.7, 0.8, 0.61, 0.68, 0.09), (0.140625, 0.234375, 0.625, 0.0975, 0.39, 0.5125, 0.0)),
        ((0.35, 0.99, 0.41, 0.98, 0.3), (0.401171875, 0.411328125, 0.1875, 0.0, 0.7375, 0.2625, 0.0501464844)),
        ((0.49, 0.66, 0.06, 0.67, 0.23), (0.45421875, 0.18328125, 0.3625, 0.783333333, 0.216666667, 0.0, 0.008125)),
    ],
    "btt": [
        ((0.9, 0.51, 0.12), (0.125, 0.0, 0.875, 0.0, 0.6125, 0.3875, 0.0)),
        ((0.46, 0.25, 0.95), (0.675, 0.0, 0.325, 0.0, 0.9375, 0.0625, 0.6328125)),
        ((0.28, 0.96, 0.74), (0.9, 0.0, 0.1, 0.0, 0.05, 0.95, 0.03375)),
        ((0.64, 0.32, 0.28), (0.45, 0.0, 0.55, 0.0, 0.85, 0.15, 0.045)),
    ],
    "full-rank-btt": [
        ((0.6, 0.84, 0.92), (0.5, 0.0, 0.5, 0.0, 0.2, 0.8, 0.18)),
        ((0.78, 0.79, 0.96), (0.275, 0.0, 0.725, 0.0, 0.2625, 0.7375, 0.249375)),
        ((0.78, 0.39, 0.51), (0.275, 0.0, 0.725, 0.0, 0.7625, 0.2375, 0.12953125)),
        ((0.17, 0.11, 0.21), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0)),
    ],
    "low-rank": [
        ((0.09,), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
        ((0.11,), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
        ((0.17,), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
        ((0.32,), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.15)),
    ],
    "kronecker": [
        ((0.62, 0.72), (0.2625, 0.7375, 0.0, 0.133333333, 0.866666667, 0.0, 0.0)),
        ((0.23, 0.55), (0.98125, 0.01875, 0.0, 0.583333333, 0.416666667, 0.0, 0.0)),
        ((0.84, 0.89), (0.4, 0.6, 0.0, 0.0, 1.0, 0.0, 0.0)),
        ((0.71, 0.35), (0.68125, 0.31875, 0.0, 0.25, 0.75, 0.0, 0.0)),
    ],
    "tensor-train": [
        ((0.07, 0.5, 0.58), (1.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.2375)),
        ((0.23, 0.8, 0.83), (0.01875, 0.98125, 0.0, 0.0, 1.0, 0.0, 0.014765625)),
        ((0.99, 0.72, 0.24), (0.49375, 0.50625, 0.0, 0.133333333, 0.866666667, 0.0, 0.0246875)),
        ((0.79, 0.54, 0.08), (0.63125, 0.36875, 0.0, 0.566666667, 0.433333333, 0.0, 0.0)),
    ],
    "monarch": [
        ((0.07,), (0.965, 0.0, 0.035, 0.0, 0.965, 0.035, 0.93)),
        ((0.16,), (0.92, 0.0, 0.08, 0.0, 0.92, 0.08, 0.84)),
        ((0.2,), (0.9, 0.0, 0.1, 0.0, 0.9, 0.1, 0.8)),
        ((0.46,), (0.77, 0.0, 0.23, 0.0, 0.77, 0.23, 0.54)),
    ],
}
"""Thetas of the time before regions had bounds."""

named = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def drawn() -> list[Theta]:
    draw, full = random.Random(0), SUBSPACES["full"]
    return [full.to_theta(tuple(draw.random() for _ in range(full.num_coordinates))) for _ in range(4000)]


@pytest.fixture
def subspace(name: str) -> Region:
    return SUBSPACES[name]


@named
class TestToTheta:
    @given(unit=units)
    def test_gives_a_canonical_theta_for_every_point(self, name: str, unit: Unit) -> None:
        assert _theta(name, unit).is_canonical

    @given(unit=units)
    def test_never_gives_a_structure_that_costs_more_than_dense(self, name: str, unit: Unit) -> None:
        theta = _theta(name, unit)
        assert theta.rho <= min(theta.alpha, theta.epsilon)

    @given(unit=units)
    def test_sums_to_one_exactly(self, name: str, unit: Unit) -> None:
        theta = _theta(name, unit)
        assert math.fsum(theta.exponents[:3]) == pytest.approx(1, abs=1e-12)
        assert math.fsum(theta.exponents[3:6]) == pytest.approx(1, abs=1e-12)

    @given(unit=units)
    def test_stays_in_its_region(self, name: str, unit: Unit) -> None:
        if name in FAMILIES:
            assert classify(_theta(name, unit)) in FAMILIES[name]

    def test_takes_every_corner_of_the_cube(self, name: str, subspace: Region) -> None:
        for corner in product((0.0, 1.0), repeat=subspace.num_coordinates):
            subspace.to_theta(corner)

    def test_has_no_redundant_direction(self, name: str, subspace: Region) -> None:
        center = (0.6,) * subspace.num_coordinates
        for axis in range(subspace.num_coordinates):
            moved = tuple(0.7 if i == axis else coordinate for i, coordinate in enumerate(center))
            assert _distance(subspace.to_theta(moved), subspace.to_theta(center)) > 0.01


@named
class TestRoundTrip:
    @given(unit=units)
    @example(unit=(0.0, 1.0, 0.5, 0.5, 0.5))
    @example(unit=(0.5, 0.0, 0.5, 0.5, 0.5))
    @example(unit=(0.3, 1 - 5e-9, 0.2, 0.9, 0.5))
    @example(unit=(0.0, 1 - 5e-9, 0.0, 0.5, 0.5))
    @example(unit=(1.0, 1e-9, 1.0, 0.0, 0.0))
    def test_comes_back_to_the_same_theta(self, name: str, unit: Unit) -> None:
        theta = _theta(name, unit)
        back = SUBSPACES[name].to_unit(theta)
        assert back is not None
        assert _distance(SUBSPACES[name].to_theta(back), theta) < ROUND_TRIP

    @given(unit=units)
    @example(unit=(0.0, 1.0, 0.5, 0.5, 0.5))
    def test_stays_in_the_cube(self, name: str, unit: Unit) -> None:
        back = SUBSPACES[name].to_unit(_theta(name, unit))
        assert back is not None
        assert len(back) == SUBSPACES[name].num_coordinates
        assert all(0 <= coordinate <= 1 for coordinate in back)

    @given(unit=units)
    @example(unit=(0.0, 1.0, 0.5, 0.5, 0.5))
    def test_knows_a_theta_by_its_swap_too(self, name: str, unit: Unit) -> None:
        theta = _theta(name, unit)
        assert SUBSPACES[name].to_unit(theta.swapped()) == SUBSPACES[name].to_unit(theta)


class TestGolden:
    """What the named subspaces were when they had no bounds but faces."""

    @pytest.mark.parametrize(
        ("name", "unit", "exponents"), [(name, *row) for name, rows in GOLDEN.items() for row in rows]
    )
    def test_thetas_are_what_they_were(self, name: str, unit: Unit, exponents: tuple[float, ...]) -> None:
        assert SUBSPACES[name].to_theta(unit).exponents == pytest.approx(exponents, abs=1e-9)


class TestToUnit:
    @pytest.mark.parametrize(
        ("name", "inside"),
        [
            ("full", {"dense", "low-rank", "kronecker", "tensor-train", "monarch", "btt"}),
            ("btt", {"dense", "low-rank", "monarch", "btt"}),
            ("full-rank-btt", {"dense", "monarch", "btt"}),
            ("low-rank", {"low-rank"}),
            ("kronecker", {"kronecker"}),
            ("tensor-train", {"low-rank", "kronecker", "tensor-train"}),
            ("monarch", {"monarch"}),
        ],
    )
    def test_places_the_known_designs_inside_and_nothing_else(self, name: str, inside: set[str]) -> None:
        assert {known for known, theta in NAMED.items() if SUBSPACES[name].to_unit(theta) is not None} == inside

    @named
    def test_comes_back_to_the_known_designs(self, name: str, subspace: Region) -> None:
        for theta in NAMED.values():
            unit = subspace.to_unit(theta)
            assert unit is None or _distance(subspace.to_theta(unit), theta) < ROUND_TRIP

    def test_places_every_theta_that_costs_less_than_dense_in_the_full_space(self) -> None:
        assert SUBSPACES["full"].to_unit(Theta.of((0.5, 0.25, 0.25, 0.25, 0.5, 0.25, 0.5))) is not None
        assert SUBSPACES["full"].to_unit(Theta.of((0.5, 0.25, 0.25, 0.25, 0.5, 0.25, 0.6))) is None

    @given(theta=strategies.thetas())
    def test_comes_back_to_any_theta_of_the_full_space(self, theta: Theta) -> None:
        unit = SUBSPACES["full"].to_unit(theta)
        canonical = theta.canonical()
        if unit is None:
            assert canonical.rho > min(canonical.alpha, canonical.epsilon)
        else:
            assert _distance(SUBSPACES["full"].to_theta(unit), theta) < 2 * ROUND_TRIP

    def test_takes_the_papers_thirds(self) -> None:
        theta = Theta.parse("(0.33|0|0.67|0|0.67|0.33|0.25)")
        for name in ("full", "btt"):
            unit = SUBSPACES[name].to_unit(theta)
            assert unit is not None
            assert _distance(SUBSPACES[name].to_theta(unit), theta) < ROUND_TRIP


class TestSubspaces:
    def test_have_a_coordinate_for_every_degree_of_freedom(self) -> None:
        assert {name: subspace.num_coordinates for name, subspace in SUBSPACES.items()} == {
            "full": 5,
            "btt": 3,
            "full-rank-btt": 3,
            "low-rank": 1,
            "kronecker": 2,
            "tensor-train": 3,
            "monarch": 1,
        }

    @given(unit=units)
    def test_with_full_rank_have_no_theta_without(self, unit: Unit) -> None:
        group = taxonomy(_theta("full-rank-btt", unit))
        assert (group.omega, group.psi) == (0, 1)

    @given(unit=units)
    def test_of_the_full_space_never_show_a_structure_twice(self, unit: Unit) -> None:
        # Inside, away from the faces, the map has an inverse: no two points are the same operators.
        inside = tuple(FACE + 0.01 + u * (0.98 - 2 * FACE) for u in unit)
        back = SUBSPACES["full"].to_unit(_theta("full", inside))
        assert back == pytest.approx(inside, abs=1e-6)


class TestFaces:
    """What a search of random points meets."""

    @pytest.mark.parametrize("name", ["btt", "full-rank-btt", "tensor-train", "kronecker", "low-rank"])
    def test_hold_every_named_family_with_positive_probability(self, name: str, drawn: list[Theta]) -> None:
        assert any(SUBSPACES[name].to_unit(theta) is not None and not theta.is_dense for theta in drawn)

    def test_hold_a_btt_as_often_as_their_size_says(self, drawn: list[Theta]) -> None:
        share = sum(max(theta.beta, theta.delta) == 0 and not theta.is_dense for theta in drawn) / len(drawn)
        assert share == pytest.approx(FACE * FACE, abs=0.01)

    def test_leave_the_inside_its_share(self, drawn: list[Theta]) -> None:
        share = sum(min(theta.exponents) > 0 for theta in drawn) / len(drawn)
        assert share == pytest.approx((1 - FACE) ** 4 * (1 - 2 * FACE), abs=0.025)

    def test_leave_what_is_between_them_even(self) -> None:
        steps = [FACE + (1 - FACE) * (i + 0.5) / 200 for i in range(200)]
        gammas = [SUBSPACES["full"].to_theta((u, 0.5, 0.5, 0.5, 0.5)).gamma for u in steps]
        for t in (0.1, 0.3, 0.5, 0.8):
            assert sum(gamma > t for gamma in gammas) / len(gammas) == pytest.approx(1 - t, abs=0.01)

    def test_are_placed_in_their_middle(self) -> None:
        assert SUBSPACES["btt"].to_unit(NAMED["btt"]) == pytest.approx((FACE + 0.5 * (1 - FACE),) * 3)
        assert SUBSPACES["full"].to_unit(NAMED["kronecker"]) == pytest.approx((FACE / 2, 1, FACE / 2, 0.5, FACE / 2))


def _theta(name: str, unit: Unit) -> Theta:
    return SUBSPACES[name].to_theta(unit[: SUBSPACES[name].num_coordinates])


def _distance(one: Theta, other: Theta) -> float:
    """The largest difference of exponents; a theta and its swap are one point, since a rounding error can decide a tie."""
    return min(
        max(abs(a - b) for a, b in zip(one.exponents, form.exponents, strict=True)) for form in (other, other.swapped())
    )
