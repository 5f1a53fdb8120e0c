import math
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import example, given

from einlayers.dims import Dims, Policy, resolve
from einlayers.taxonomy import (
    Family,
    classify,
    cost,
    ideal_macs,
    is_dense,
    layer_cost,
    padded_macs,
    rank_bound,
    taxonomy,
)
from einlayers.theta import NAMED, Theta
from tests import golden, strategies

EXACT = 1e-9

FAMILIES: dict[str, Family] = {
    "dense_hadamard*": "dense",
    "dense_single_factor": "dense",
    "low_rank_quarter*": "low-rank",
    "swap_lowrank": "low-rank",
    "lowrank_rho0": "low-rank",
    "l1": "low-rank",
    "l2": "low-rank",
    "kronecker*": "kronecker",
    "tt1": "kronecker",
    "tt2": "kronecker",
    "noncanon_kron_wide": "kronecker",
    "tt_fig2_noncanonical*": "kronecker",
    "tt3": "tensor-train",
    "tt4": "tensor-train",
    "tt_rank_quarter": "tensor-train",
    "noncanon_kron_rho": "tensor-train",
    "monarch*": "monarch",
    "swap_monarch": "monarch",
    "btt1": "monarch",
    "btt11": "btt",
    "btt13": "btt",
    "btt6": "btt",
    "btt_fig2*": "btt",
    "degenerate_rho": "btt",
    "g1": "einsum",
    "g2": "einsum",
    "swap_g2": "einsum",
    "omega0_but_beta_pos": "einsum",
    "omega0_but_delta_pos": "einsum",
    "all_thirds": "einsum",
}


class TestTaxonomy:
    def test_is_the_golden_one(self) -> None:
        for row in golden.exponents():
            coordinates = taxonomy(row.theta)
            assert (coordinates.omega, coordinates.psi, coordinates.nu) == pytest.approx(
                (row.omega, row.psi, row.nu), abs=EXACT
            ), row.name

    @pytest.mark.parametrize("fact", golden.psi_disagreements(), ids=lambda fact: fact.name)
    def test_corrects_the_published_rank_exponent(self, fact: golden.PsiDisagreement) -> None:
        a, _, _, _, e, _, r = fact.theta.exponents
        assert min(1, 2 + r - a - e) == pytest.approx(fact.published)
        assert taxonomy(fact.theta).psi == pytest.approx(fact.psi, abs=EXACT)

    @given(theta=strategies.thetas())
    def test_is_that_of_the_operators_and_not_of_the_names_of_their_factors(self, theta: Theta) -> None:
        assert taxonomy(theta) == taxonomy(theta.swapped())

    @given(theta=strategies.thetas())
    def test_does_not_change_by_transposing(self, theta: Theta) -> None:
        here, there = taxonomy(theta), taxonomy(theta.transposed())
        assert (here.omega, here.psi, here.nu) == pytest.approx((there.omega, there.psi, there.nu), abs=EXACT)

    @given(theta=strategies.thetas())
    def test_ties_compute_to_rank_where_the_rank_is_not_full(self, theta: Theta) -> None:
        coordinates = taxonomy(theta)
        if coordinates.psi < 1 - EXACT:
            canonical = theta.canonical()
            larger = max(canonical.alpha, canonical.epsilon)
            assert coordinates.nu == pytest.approx(coordinates.psi + larger - 1, abs=EXACT)
        else:
            assert coordinates.nu >= 0.5 - EXACT

    @given(theta=strategies.thetas())
    def test_stays_in_its_range(self, theta: Theta) -> None:
        coordinates = taxonomy(theta)
        assert 0 <= coordinates.omega <= 1
        assert 0 <= coordinates.psi <= 1
        assert 0 <= coordinates.nu <= 2

    def test_makes_no_sharing_exactly_zero_for_exponents_that_binary_cannot_hold(self) -> None:
        for alpha in (1 / 3, 0.33, 0.1, 0.7):
            theta = Theta.of((alpha, 0, 1 - alpha, 0, 1 - alpha, alpha, 0.1))
            assert taxonomy(theta).omega == 0

    def test_predicts_what_wide_layers_cost(self) -> None:
        d = 2**16
        whole = [
            row for row in golden.exponents() if all((exponent * 8).is_integer() for exponent in row.theta.exponents)
        ]
        assert len(whole) >= 15
        for row in whole:
            coordinates, price = taxonomy(row.theta), cost(resolve(row.theta, d, d))
            assert _exponent_within_a_factor_of_two(price.macs, d, 1 + coordinates.nu), row.name
            assert _exponent_within_a_factor_of_two(price.params, d, 1 + coordinates.nu - coordinates.omega), row.name
            assert rank_bound(resolve(row.theta, d, d)) == pytest.approx(d**coordinates.psi), row.name


class TestCost:
    def test_counts_the_golden_layers_in_the_cheaper_order(self) -> None:
        for row in golden.layers():
            price = cost(_dims(row))
            assert price.params == row.params
            assert price.macs == min(row.macs_a_first, row.macs_b_first)
            a_first = row.macs_a_first <= row.macs_b_first
            assert price.order == ("A_first" if a_first else "B_first")
            assert price.intermediate == (row.inter_a_first if a_first else row.inter_b_first)

    @given(dims=strategies.full_dims())
    def test_exchanges_the_orders_and_nothing_else_by_swapping(self, dims: Dims) -> None:
        here, there = cost(dims), cost(strategies.swap(dims))
        assert (here.params, here.macs) == (there.params, there.macs)
        if _macs(dims, "A_first") != _macs(dims, "B_first"):
            assert {here.order, there.order} == {"A_first", "B_first"}

    @given(dims=strategies.full_dims())
    def test_costs_the_same_transposed(self, dims: Dims) -> None:
        here, there = cost(dims), cost(strategies.transpose(dims))
        assert (here.params, here.macs) == (there.params, there.macs)

    @given(dims=strategies.full_dims())
    def test_counts_every_multiplication_of_the_two_contractions(self, dims: Dims) -> None:
        price = cost(dims)
        assert price.macs == min(_macs(dims, "A_first"), _macs(dims, "B_first")) == _macs(dims, price.order)

    @given(dims=strategies.full_dims())
    def test_uses_every_parameter_and_uses_it_once_only_without_sharing(self, dims: Dims) -> None:
        price = cost(dims)
        assert price.params <= price.macs
        unshared = max(dims.beta, dims.delta) == 1 or max(dims.alpha, dims.epsilon) == 1
        assert (price.params == price.macs) is unshared


class TestLayerCost:
    def test_is_one_matrix_for_every_spelling_of_dense(self) -> None:
        for theta in (NAMED["dense"], Theta.of((1, 0, 0, 1, 0, 0, 0)), Theta.of((0, 1, 0, 0, 1, 0, 0.5))):
            price = layer_cost(theta, 96, 384)
            assert (price.params, price.macs, price.intermediate, price.order) == (96 * 384, 96 * 384, 0, "dense")

    def test_is_one_matrix_where_the_axes_are_dense_at_these_widths(self) -> None:
        theta = Theta.of((0.05, 0.95, 0, 0, 0.98, 0.02, 0))
        assert is_dense(theta, 32, 32)
        assert layer_cost(theta, 32, 32) == layer_cost("dense", 32, 32)
        assert not is_dense(theta, 2**20, 2**20)
        assert layer_cost(theta, 2**20, 2**20) == cost(resolve(theta, 2**20, 2**20))

    @pytest.mark.parametrize("name", ["low-rank", "kronecker", "tensor-train", "monarch", "btt"])
    def test_is_the_cost_of_the_resolved_axes_otherwise(self, name: str) -> None:
        for policy in ("exact", "round"):
            assert layer_cost(NAMED[name], 96, 384, policy) == cost(resolve(NAMED[name], 96, 384, policy))


class TestPaddedMacs:
    @given(theta=strategies.thetas(), d_in=strategies.widths(20), d_out=strategies.widths(20))
    @example(theta=NAMED["btt"], d_in=11, d_out=13)
    @example(theta=NAMED["tensor-train"].swapped(), d_in=17, d_out=19)
    def test_are_those_that_read_padding_or_make_what_is_cropped(self, theta: Theta, d_in: int, d_out: int) -> None:
        policies: tuple[Policy, ...] = ("exact", "round")
        for policy in policies:
            if is_dense(theta, d_in, d_out, policy):
                assert padded_macs(theta, d_in, d_out, policy) == 0
            else:
                assert padded_macs(theta, d_in, d_out, policy) == _padded(resolve(theta, d_in, d_out, policy))

    def test_are_none_where_the_axes_fit(self) -> None:
        assert padded_macs("btt", 16, 64) == 0
        assert padded_macs("btt", 997, 997) > 0


class TestIdealMacs:
    @pytest.mark.parametrize("theta", NAMED.values(), ids=NAMED)
    @pytest.mark.parametrize(("d_in", "d_out"), [(256, 256), (256, 65_536), (65_536, 256)])
    def test_are_the_macs_where_the_ideal_axes_are_whole(self, theta: Theta, d_in: int, d_out: int) -> None:
        for each in (theta, theta.swapped()):
            assert ideal_macs(each, d_in, d_out) == pytest.approx(layer_cost(each, d_in, d_out).macs)


class TestClassify:
    @pytest.mark.parametrize(("name", "family"), FAMILIES.items())
    def test_names_the_family(self, name: str, family: Family) -> None:
        assert classify(golden.thetas()[name]) == family

    @pytest.mark.parametrize("name", NAMED)
    def test_calls_the_known_designs_by_their_names(self, name: str) -> None:
        assert classify(NAMED[name]) == name

    @given(theta=strategies.thetas())
    def test_does_not_depend_on_the_names_of_the_factors(self, theta: Theta) -> None:
        assert classify(theta) == classify(theta.swapped())
        assert theta.is_dense == theta.swapped().is_dense

    @pytest.mark.parametrize("num_blocks_exponent", ["1/2", "1/5", "1/3", "1/10"])
    def test_knows_monarch_by_any_number_of_blocks(self, num_blocks_exponent: str) -> None:
        blocks = Fraction(num_blocks_exponent)
        theta = Theta.of([float(x) for x in (1 - blocks, 0, blocks, 0, 1 - blocks, blocks, 1 - 2 * blocks)])
        assert classify(theta) == "monarch"

    def test_builds_monarch_of_four_blocks_as_the_golden_block_tensor_train(self) -> None:
        fact = golden.monarch_as_btt()
        blocks = math.log(fact.num_blocks, fact.d)
        theta = Theta.of((1 - blocks, 0, blocks, 0, 1 - blocks, blocks, 1 - 2 * blocks))
        dims = resolve(theta, fact.d, fact.d)
        assert dims.axes == fact.axes
        assert cost(dims).params == fact.params
        assert classify(theta) == "monarch"


def _macs(dims: Dims, order: str) -> int:
    """Multiplications of two einsums, each the product of the sizes of all of its indices."""
    sizes = dict(zip("abgdefr", dims.axes, strict=True))
    steps = {"A_first": ("gbafdr", "fdrgbe"), "B_first": ("gbafer", "fergad")}[order]
    return sum(math.prod(sizes[index] for index in step) for step in steps)


def _padded(dims: Dims) -> int:
    """One by one, in the cheaper order: the multiplications of an input, or for an output, that the layer does not have."""
    sizes = dict(zip("abgdefr", dims.axes, strict=True))
    first, second = ("gbafdr", "fdrgbe") if _macs(dims, "A_first") <= _macs(dims, "B_first") else ("gbafer", "fergad")
    found = 0
    for step, feature, width in ((first, "gba", dims.d_in), (second, "fed", dims.d_out)):
        for indices in product(*(range(sizes[name]) for name in step)):
            at = dict(zip(step, indices, strict=True))
            number = 0
            for name in feature:
                number = number * sizes[name] + at[name]
            found += number >= width
    return found


def _exponent_within_a_factor_of_two(count: int, d: int, exponent: float) -> bool:
    return 0 <= math.log(count) - exponent * math.log(d) + EXACT <= math.log(2) + 2 * EXACT


def _dims(row: golden.Layer) -> Dims:
    return Dims.of(row.axes, row.d_in, row.d_out)
