"""The cube of a search: whole numbers beside theta, no direction without effect, and back to where a design was."""

import math
import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from einlayers.errors import FieldError
from einlayers.taxonomy import taxonomy
from einlayers.theta import NAMED, Theta
from search.cube import Cube, ExpertAxes, MixtureAxes, WholeRange
from search.designs import PAPERS_GRID
from search.proxies.char_lm import CharLM
from search.proxies.registry import ProxySpec
from search.proxies.shapes import GroupThetas, Mixture
from search.space import SUBSPACES
from search.variant import Variant

SPARSE = CharLM(mixture=Mixture(num_experts=8, top_k=2))

wholes = st.integers(1, 1024)


def whole_range(low: int, high: int) -> WholeRange:
    return WholeRange(min=low, max=high)


@st.composite
def ranges(draw: st.DrawFn, least: int = 1, most: int = 1024) -> WholeRange:
    low = draw(st.integers(least, most))
    return whole_range(low, draw(st.integers(low, most)))


@st.composite
def expert_axes(draw: st.DrawFn) -> ExpertAxes:
    experts = draw(ranges(most=64))
    low = draw(st.integers(1, experts.min))
    return ExpertAxes(num_experts=experts, top_k=whole_range(low, draw(st.integers(low, experts.max))))


def are_near(one: Theta, other: Theta) -> bool:
    """Whether two are the same but for rounding, which may also exchange the factors."""
    forms = (other.exponents, other.swapped().exponents)
    return any(one.exponents == pytest.approx(form, abs=3e-9) for form in forms)


def units(size: int) -> st.SearchStrategy[tuple[float, ...]]:
    return st.tuples(*[st.floats(0, 1, allow_subnormal=False)] * size)


class TestWholeRange:
    @given(whole=ranges(), u=st.floats(0, 1))
    def test_holds_what_it_gives(self, whole: WholeRange, u: float) -> None:
        assert whole.min <= whole.at(u) <= whole.max

    @given(whole=ranges(), data=st.data())
    def test_comes_back_to_a_number_from_its_middle(self, whole: WholeRange, data: st.DataObject) -> None:
        number = data.draw(st.integers(whole.min, whole.max))
        middle = whole.middle(number)
        assert 0 < middle < 1
        assert whole.at(middle) == number

    @given(whole=ranges(), u=st.floats(0, 1), v=st.floats(0, 1))
    def test_never_falls(self, whole: WholeRange, u: float, v: float) -> None:
        assume(u <= v)
        assert whole.at(u) <= whole.at(v)

    def test_reaches_both_ends(self) -> None:
        assert (whole_range(2, 7).at(0.0), whole_range(2, 7).at(1.0)) == (2, 7)

    def test_gives_every_doubling_the_same_share(self) -> None:
        # 1, 2 to 3, 4 to 7, 8 to 15: four octaves.
        draw = random.Random(0)
        octaves = Counter(whole_range(1, 15).at(draw.random()).bit_length() for _ in range(8000))
        assert sorted(octaves) == [1, 2, 3, 4]
        assert [count / 8000 for count in octaves.values()] == pytest.approx([0.25] * 4, abs=0.02)

    @pytest.mark.parametrize("ends", [(0, 4), (5, 4), (1, 1025), (1.0, 2), (True, 2), ("1", 2)])
    def test_refuses_what_is_none(self, ends: tuple[int, int]) -> None:
        with pytest.raises(FieldError, match=r"^(min|max): expected a whole number from"):
            whole_range(*ends)


class TestExpertAxes:
    @given(axes=expert_axes(), data=st.data())
    def test_never_take_more_experts_than_there_are(self, axes: ExpertAxes, data: st.DataObject) -> None:
        experts, chosen = axes.to_numbers(data.draw(units(axes.num_coordinates)))
        assert axes.num_experts.min <= experts <= axes.num_experts.max
        assert axes.top_k.min <= chosen <= min(axes.top_k.max, experts)

    @given(axes=expert_axes(), data=st.data())
    def test_come_back_to_the_same_numbers(self, axes: ExpertAxes, data: st.DataObject) -> None:
        experts = data.draw(st.integers(axes.num_experts.min, axes.num_experts.max))
        chosen = data.draw(st.integers(axes.top_k.min, min(axes.top_k.max, experts)))
        unit = axes.to_unit(experts, chosen)
        assert unit is not None
        assert len(unit) == axes.num_coordinates
        assert axes.to_numbers(unit) == (experts, chosen)

    @given(axes=expert_axes(), experts=st.integers(1, 80), chosen=st.integers(1, 80))
    def test_have_no_place_for_other_numbers(self, axes: ExpertAxes, experts: int, chosen: int) -> None:
        inside = (
            axes.num_experts.min <= experts <= axes.num_experts.max
            and axes.top_k.min <= chosen <= axes.top_k.max
            and chosen <= experts
        )
        assert (axes.to_unit(experts, chosen) is not None) == inside

    @pytest.mark.parametrize(
        ("experts", "top_k", "num_coordinates"),
        [((1, 8), (1, 8), 2), ((4, 4), (1, 4), 1), ((4, 8), (2, 2), 1), ((4, 4), (2, 2), 0)],
    )
    def test_have_a_coordinate_for_each_that_is_not_the_same_everywhere(
        self, experts: tuple[int, int], top_k: tuple[int, int], num_coordinates: int
    ) -> None:
        axes = ExpertAxes(num_experts=whole_range(*experts), top_k=whole_range(*top_k))
        assert axes.num_coordinates == num_coordinates

    def test_reach_all_of_their_numbers(self) -> None:
        axes, draw = ExpertAxes(num_experts=whole_range(1, 6), top_k=whole_range(1, 4)), random.Random(0)
        met = {axes.to_numbers((draw.random(), draw.random())) for _ in range(2000)}
        assert met == {(experts, chosen) for experts in range(1, 7) for chosen in range(1, min(4, experts) + 1)}

    def test_change_with_either_coordinate(self) -> None:
        axes = ExpertAxes(num_experts=whole_range(4, 64), top_k=whole_range(1, 8))
        assert len({axes.to_numbers((u / 10, 0.5))[0] for u in range(11)}) > 5
        for experts in (0.1, 0.5, 0.9):
            assert len({axes.to_numbers((experts, u / 10))[1] for u in range(11)}) > 3

    def test_refuse_more_active_experts_than_there_are(self) -> None:
        with pytest.raises(FieldError, match=r"^num_experts: expected at least 2 experts, .* got 1$"):
            ExpertAxes(num_experts=whole_range(1, 8), top_k=whole_range(2, 4))
        with pytest.raises(FieldError, match=r"^top_k: expected at most the 8 experts that there are, got 9$"):
            ExpertAxes(num_experts=whole_range(4, 8), top_k=whole_range(2, 9))


class TestMixtureAxes:
    def test_leave_what_is_not_given_as_the_proxy_has_it(self) -> None:
        assert MixtureAxes(num_experts=whole_range(2, 32)).on(SPARSE).top_k == whole_range(2, 2)
        assert MixtureAxes(top_k=whole_range(1, 4)).on(SPARSE).num_experts == whole_range(8, 8)

    def test_refuse_a_proxy_without_a_mixture(self) -> None:
        with pytest.raises(FieldError, match=r"^mixture: expected none where the proxy has no mixture"):
            MixtureAxes(top_k=whole_range(1, 1)).on(CharLM())

    def test_choose_something(self) -> None:
        with pytest.raises(FieldError, match=r"^num_experts: expected a range"):
            MixtureAxes()


@pytest.mark.parametrize("name", SUBSPACES)
class TestCube:
    @staticmethod
    def cube(name: str) -> Cube:
        axes = ExpertAxes(num_experts=whole_range(2, 32), top_k=whole_range(1, 4))
        return Cube(region=SUBSPACES[name], proxy=SPARSE, experts=axes)

    @given(unit=units(7))
    def test_comes_back_to_the_same_design(self, name: str, unit: tuple[float, ...]) -> None:
        cube = self.cube(name)
        design = cube.to_design(unit[: cube.num_coordinates])
        back = cube.to_unit(design.theta, design.variant)
        assert back is not None
        assert len(back) == cube.num_coordinates
        again = cube.to_design(back)
        assert again.variant == design.variant
        assert are_near(again.theta, design.theta)

    @given(unit=units(7))
    def test_gives_variants_that_its_proxy_can_be(self, name: str, unit: tuple[float, ...]) -> None:
        cube = self.cube(name)
        design = cube.to_design(unit[: cube.num_coordinates])
        assert design.variant is not None
        mixture = design.variant.on(SPARSE).mixture
        assert mixture is not None
        assert (mixture.num_experts, mixture.top_k) == (design.variant.num_experts, design.variant.top_k)
        assert mixture.balance == Mixture().balance

    def test_has_no_direction_without_effect(self, name: str) -> None:
        cube = self.cube(name)
        middle = (0.6,) * cube.num_coordinates
        assert cube.num_coordinates == SUBSPACES[name].num_coordinates + 2
        for axis in range(cube.num_coordinates):
            moved = tuple(0.95 if i == axis else u for i, u in enumerate(middle))
            assert cube.to_design(moved) != cube.to_design(middle)

    def test_places_what_says_nothing_where_the_proxy_is(self, name: str) -> None:
        cube = self.cube(name)
        theta = SUBSPACES[name].to_theta((0.6,) * SUBSPACES[name].num_coordinates)
        own = cube.to_unit(theta, Variant(num_experts=8, top_k=2))
        assert own is not None
        assert cube.to_unit(theta) == cube.to_unit(theta, Variant(top_k=2)) == own

    def test_has_no_place_for_numbers_that_it_cannot_choose(self, name: str) -> None:
        theta = SUBSPACES[name].to_theta((0.6,) * SUBSPACES[name].num_coordinates)
        plain = Cube(region=SUBSPACES[name], proxy=SPARSE)
        for cube, numbers in ((plain, (8, 1)), (self.cube(name), (64, 2)), (self.cube(name), (8, 5))):
            assert cube.to_unit(theta, Variant(num_experts=numbers[0], top_k=numbers[1])) is None
        assert plain.to_unit(theta, Variant(num_experts=8)) == SUBSPACES[name].to_unit(theta)

    def test_is_that_of_the_region_where_nothing_else_is_chosen(self, name: str) -> None:
        cube = Cube(region=SUBSPACES[name], proxy=CharLM())
        unit = (0.6,) * cube.num_coordinates
        assert cube.num_coordinates == SUBSPACES[name].num_coordinates
        assert cube.to_design(unit).theta.exponents == SUBSPACES[name].to_theta(unit).exponents
        assert cube.to_design(unit).variant is None


@pytest.mark.parametrize("name", SUBSPACES)
class TestGroups:
    """A theta of its own for attention."""

    @staticmethod
    def cube(name: str, proxy: ProxySpec = SPARSE) -> Cube:
        axes = ExpertAxes(num_experts=whole_range(2, 32), top_k=whole_range(1, 4)) if proxy.mixture else None
        return Cube(region=SUBSPACES[name], proxy=proxy, experts=axes, groups=("attention",))

    @given(unit=units(12))
    def test_come_back_to_the_same_design(self, name: str, unit: tuple[float, ...]) -> None:
        cube = self.cube(name)
        design = cube.to_design(unit[: cube.num_coordinates])
        back = cube.to_unit(design.theta, design.variant)
        assert back is not None
        assert len(back) == cube.num_coordinates == 2 * SUBSPACES[name].num_coordinates + 2
        assert all(0 <= coordinate <= 1 for coordinate in back)
        again = cube.to_design(back)
        assert design.variant is not None
        assert again.variant is not None
        assert again.variant.numbers(Mixture()) == design.variant.numbers(Mixture())
        for one, other in (
            (again.theta, design.theta),
            (again.variant.group_thetas["attention"], design.variant.group_thetas["attention"]),
        ):
            assert are_near(one, other)

    @given(unit=units(10))
    def test_have_structures_of_the_same_region(self, name: str, unit: tuple[float, ...]) -> None:
        cube, size = self.cube(name, CharLM()), SUBSPACES[name].num_coordinates
        design = cube.to_design(unit[: 2 * size])
        assert design.variant is not None
        assert design.theta.exponents == SUBSPACES[name].to_theta(unit[:size]).exponents
        thetas = design.variant.on(CharLM()).group_thetas
        assert {group: theta.exponents for group, theta in thetas.items()} == {
            "attention": SUBSPACES[name].to_theta(unit[size : 2 * size]).exponents
        }

    def test_have_no_direction_without_effect(self, name: str) -> None:
        cube = self.cube(name)
        middle = (0.6,) * cube.num_coordinates
        designs = {
            str(cube.to_design(tuple(0.95 if i == axis else u for i, u in enumerate(middle))))
            for axis in range(cube.num_coordinates)
        }
        assert len(designs | {str(cube.to_design(middle))}) == cube.num_coordinates + 1

    def test_share_the_structure_where_nothing_is_said_of_them(self, name: str) -> None:
        cube, size = self.cube(name, CharLM()), SUBSPACES[name].num_coordinates
        theta = SUBSPACES[name].to_theta((0.6,) * size)
        unit = cube.to_unit(theta)
        assert unit is not None
        assert unit[:size] == unit[size:] == SUBSPACES[name].to_unit(theta)

    def test_have_no_place_where_another_group_has_a_structure_of_its_own(self, name: str) -> None:
        theta = SUBSPACES[name].to_theta((0.6,) * SUBSPACES[name].num_coordinates)
        variant = Variant(thetas=GroupThetas(feed_forward=theta))
        assert self.cube(name, CharLM()).to_unit(theta, variant) is None
        assert Cube(region=SUBSPACES[name], proxy=CharLM()).to_unit(theta, variant) is None
        fixed = CharLM(thetas=GroupThetas(feed_forward=theta))
        assert Cube(region=SUBSPACES[name], proxy=fixed).to_unit(theta, variant) == SUBSPACES[name].to_unit(theta)


def test_groups_have_no_place_outside_of_the_region() -> None:
    cube = Cube(region=SUBSPACES["low-rank"], proxy=CharLM(), groups=("attention",))
    assert cube.to_unit(NAMED["low-rank"], Variant(thetas=GroupThetas(attention=NAMED["monarch"]))) is None
    assert cube.to_unit(NAMED["low-rank"], Variant(thetas=GroupThetas(attention=NAMED["low-rank"]))) is not None


class TestMiddle:
    def test_is_the_geometric_mean_of_the_ends_of_an_interval(self) -> None:
        # 1 to 3: intervals from 1, 2 and 3 to 4, on a logarithmic scale.
        ends = [math.log(n) / math.log(4) for n in (1, 2, 3, 4)]
        middles = [whole_range(1, 3).middle(n) for n in (1, 2, 3)]
        assert middles == pytest.approx([(a + b) / 2 for a, b in pairwise(ends)])


def test_named_designs_are_placed_with_the_numbers_of_the_proxy() -> None:
    cube = Cube(
        region=SUBSPACES["full"],
        proxy=SPARSE,
        experts=ExpertAxes(num_experts=whole_range(2, 4), top_k=whole_range(1, 2)),
    )
    assert all(cube.to_unit(theta) is None for theta in NAMED.values())


class TestFeatures:
    """What a surrogate compares designs by."""

    @given(unit=units(5))
    def test_are_those_of_the_structure_in_one_of_its_forms(self, unit: tuple[float, ...]) -> None:
        cube = Cube(region=SUBSPACES["full"], proxy=CharLM())
        theta, features = cube.to_design(unit).theta, cube.describe(unit)
        assert features[:7] in (theta.exponents, theta.swapped().exponents)
        assert features[1] <= features[0]
        found = taxonomy(theta)
        assert features[7:] == (found.omega, found.psi, found.nu)

    @given(unit=units(5))
    def test_are_the_same_wherever_on_a_face_the_point_is(self, unit: tuple[float, ...]) -> None:
        cube = Cube(region=SUBSPACES["full"], proxy=CharLM())
        middle = cube.to_unit(cube.to_design(unit).theta)
        assert middle is not None
        # Where alpha and beta are equal, either form has beta at most alpha.
        assume(cube.describe(unit)[0] - cube.describe(unit)[1] > 1e-6)
        assert cube.describe(middle) == pytest.approx(cube.describe(unit), abs=1e-6)

    def test_are_of_all_that_is_chosen(self) -> None:
        axes = ExpertAxes(num_experts=whole_range(2, 32), top_k=whole_range(1, 4))
        cube = Cube(region=SUBSPACES["btt"], proxy=SPARSE, experts=axes, groups=("attention",))
        middle = (0.6,) * cube.num_coordinates
        assert len(cube.describe(middle)) == 2 * 10 + 2
        for axis in range(cube.num_coordinates):
            moved = tuple(0.95 if i == axis else u for i, u in enumerate(middle))
            assert cube.describe(moved) != cube.describe(middle)


class TestLandmarks:
    @pytest.mark.parametrize("name", SUBSPACES)
    def test_are_the_known_designs_that_can_be_chosen(self, name: str) -> None:
        cube = Cube(region=SUBSPACES[name], proxy=CharLM())
        thetas = [cube.to_design(unit).theta for unit in cube.landmarks]
        known = {*NAMED.values(), *PAPERS_GRID} - {NAMED["dense"]}
        for theta in known:
            assert any(are_near(theta, each) for each in thetas) == (cube.to_unit(theta) is not None)
        assert len(thetas) == sum(cube.to_unit(theta) is not None for theta in known)
        assert not any(theta.is_dense for theta in thetas)

    def test_have_the_mixture_of_the_proxy_and_one_structure_for_all_layers(self) -> None:
        axes = ExpertAxes(num_experts=whole_range(2, 32), top_k=whole_range(1, 4))
        cube = Cube(region=SUBSPACES["full"], proxy=SPARSE, experts=axes, groups=("attention",))
        assert len(cube.landmarks) > 20
        for unit in cube.landmarks:
            design = cube.to_design(unit)
            assert design.variant is not None
            assert design.variant.numbers(Mixture()) == (8, 2)
            assert design.variant.group_thetas["attention"] == design.theta
