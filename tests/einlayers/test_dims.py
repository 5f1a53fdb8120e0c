import math
from itertools import product

import pytest
import torch
from hypothesis import assume, example, given

from einlayers.dims import MAX_WIDTH, Dims, resolve
from einlayers.errors import FieldError
from einlayers.linear import EinsumLinear
from einlayers.taxonomy import cost, rank_bound
from einlayers.theta import NAMED, Theta
from tests import golden, strategies

PAPER_WIDTHS = (256, 512, 768, 1024, 2048, 4096)
PADDING_LIMIT = 0.02
EXACT = 1e-12


class TestDims:
    def test_counts_the_features_that_its_axes_hold(self) -> None:
        dims = Dims(alpha=2, beta=3, gamma=5, delta=7, epsilon=2, phi=3, rho=4, d_in=25, d_out=60)
        assert dims.axes == (2, 3, 5, 7, 2, 3, 4)
        assert (dims.inputs, dims.outputs) == (30, 42)
        assert dims.padding_in == pytest.approx(0.2)
        assert dims.padding_out == pytest.approx(-0.3)

    @pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "delta", "epsilon", "phi", "rho", "d_in", "d_out"])
    def test_refuses_an_empty_axis_and_names_it(self, name: str) -> None:
        sizes = dict.fromkeys(("alpha", "beta", "gamma", "delta", "epsilon", "phi", "rho", "d_in", "d_out"), 1)
        with pytest.raises(FieldError, match=f"^{name}: expected a positive size, got 0"):
            Dims(**sizes | {name: 0})


class TestDense:
    @given(dims=strategies.full_dims(largest=3))
    @example(dims=Dims.of((1, 3, 2, 1, 2, 2, 2), 6, 4))
    @example(dims=Dims.of((2, 1, 3, 3, 1, 2, 1), 6, 6))
    def test_axes_hold_every_matrix_in_one_factor(self, dims: Dims) -> None:
        sizes = {name: math.prod(shape) for name, shape in (("A", dims.shape_A), ("B", dims.shape_B))}
        whole = [name for name, size in sizes.items() if size == dims.rho * dims.d_in * dims.d_out]
        assert dims.is_dense is bool(whole)
        for name in whole:
            layer = EinsumLinear.from_dims(dims, bias=False)
            for parameter in layer.parameters():
                torch.nn.init.ones_(parameter)
            factor = getattr(layer, name)
            # With the other factor at one, its entries are those of the matrix, each in a place of its own.
            torch.nn.init.zeros_(factor)
            factor.data[:, :, 0] = torch.arange(1.0, dims.d_in * dims.d_out + 1).view_as(factor[:, :, 0])
            assert sorted(layer.to_dense().flatten().tolist()) == list(range(1, dims.d_in * dims.d_out + 1))

    def test_axes_come_from_small_exponents_at_small_widths(self) -> None:
        theta = Theta.of((0.05, 0.95, 0, 0, 0.98, 0.02, 0))
        assert resolve(theta, 32, 32).is_dense
        assert not resolve(theta, 2**20, 2**20).is_dense

    def test_axes_are_not_those_that_drop_features(self) -> None:
        assert Dims.of((1, 4, 1, 1, 4, 1, 1), 4, 4).is_dense
        assert not Dims.of((1, 4, 1, 1, 4, 1, 1), 5, 4).is_dense
        assert not Dims.of((1, 4, 1, 1, 4, 1, 1), 4, 5).is_dense


class TestArguments:
    @pytest.mark.parametrize("width", [0, -1, MAX_WIDTH + 1, 1.5, 64.0, True, None, "64", math.nan])
    @pytest.mark.parametrize("name", ["d_in", "d_out"])
    def test_refuses_what_is_no_width_and_names_it(self, name: str, width: object) -> None:
        widths: dict[str, object] = {"d_in": 64, "d_out": 64, name: width}
        with pytest.raises(FieldError, match=f"^{name}: expected a whole number from 1 to {MAX_WIDTH}") as caught:
            resolve(NAMED["btt"], **widths)  # type: ignore[arg-type]  # the point of the test
        assert caught.value.got is width

    def test_refuses_an_unknown_policy(self) -> None:
        with pytest.raises(FieldError, match=r"^policy: expected one of \('exact', 'round'\), got 'up'"):
            resolve(NAMED["btt"], 64, 64, "up")  # type: ignore[arg-type]  # the point of the test

    def test_takes_the_widest_layer(self) -> None:
        assert resolve(NAMED["btt"], MAX_WIDTH, MAX_WIDTH).axes == (1024, 1, 1024, 1, 1024, 1024, 32)


class TestRoundPolicy:
    def test_reproduces_the_papers_axes_at_every_width(self) -> None:
        got = {
            (row.name, row.d_in, row.d_out): resolve(golden.thetas()[row.name], row.d_in, row.d_out, "round").axes
            for row in golden.layers()
        }
        assert got == {(row.name, row.d_in, row.d_out): row.axes for row in golden.layers()}

    def test_reports_what_it_pads_and_drops(self) -> None:
        for row in golden.layers():
            dims = resolve(golden.thetas()[row.name], row.d_in, row.d_out, "round")
            assert abs(dims.padding_in) == pytest.approx(row.padding_in, abs=EXACT)
            assert abs(dims.padding_out) == pytest.approx(row.padding_out, abs=EXACT)

    def test_drops_ten_features_of_256_where_the_papers_do(self) -> None:
        dims = resolve(golden.thetas()["btt2"], 256, 256, "round")
        assert dims.inputs == dims.outputs == 246
        assert dims.padding_in == dims.padding_out == pytest.approx(-10 / 256)

    def test_takes_the_exponents_as_they_are_written(self) -> None:
        theta = Theta.of((0.34, 0.33, 0.34, 0.5, 0.5, 0, 0))
        assert resolve(theta, 1024, 1024, "round").axes == (11, 10, 11, 32, 32, 1, 1)


class TestExactPolicy:
    @given(theta=strategies.thetas(), d_in=strategies.widths(), d_out=strategies.widths())
    def test_never_drops_a_feature(self, theta: Theta, d_in: int, d_out: int) -> None:
        dims = resolve(theta, d_in, d_out)
        assert dims.inputs >= d_in
        assert dims.outputs >= d_out
        assert min(dims.padding_in, dims.padding_out) >= 0

    def test_pads_the_papers_layers_by_no_more_than_two_percent(self) -> None:
        worst = {
            (name, d_in, d_out): max(dims.padding_in, dims.padding_out)
            for name, theta in golden.reference_thetas().items()
            for d in range(256, 4097, 128)
            for d_in, d_out in ((d, d), (d, 4 * d), (4 * d, d))
            for dims in [resolve(theta, d_in, d_out)]
        }
        assert {layer: padding for layer, padding in worst.items() if padding > PADDING_LIMIT} == {}

    def test_never_caps_the_rank_of_the_papers_full_rank_layers(self) -> None:
        capped = [
            (name, d_in, d_out)
            for name, theta in golden.reference_thetas().items()
            for d in (*PAPER_WIDTHS, 300, 997, 1000)
            for d_in, d_out in ((d, d), (d, 4 * d), (4 * d, d))
            if _promises_full_rank(theta, d_in, d_out) and rank_bound(resolve(theta, d_in, d_out)) < min(d_in, d_out)
        ]
        assert capped == []

    @given(theta=strategies.thetas(), d_in=strategies.widths(300), d_out=strategies.widths(300))
    def test_never_caps_the_rank_that_theta_promises(self, theta: Theta, d_in: int, d_out: int) -> None:
        assume(_promises_full_rank(theta, d_in, d_out))
        assert rank_bound(resolve(theta, d_in, d_out)) == min(d_in, d_out)

    @given(dims=strategies.full_dims())
    def test_finds_the_integer_axes_that_theta_was_made_of(self, dims: Dims) -> None:
        assume(min(dims.d_in, dims.d_out) >= max(2, dims.rho))
        log_in, log_out = math.log(dims.d_in), math.log(dims.d_out)
        theta = Theta(
            alpha=math.log(dims.alpha) / log_in,
            beta=math.log(dims.beta) / log_in,
            gamma=math.log(dims.gamma) / log_in,
            delta=math.log(dims.delta) / log_out,
            epsilon=math.log(dims.epsilon) / log_out,
            phi=math.log(dims.phi) / log_out,
            rho=math.log(dims.rho) / min(log_in, log_out),
        )
        assert resolve(theta, dims.d_in, dims.d_out) == dims

    def test_agrees_with_rounding_where_rounding_fits(self) -> None:
        for d, axes in ((256, (16, 1, 16, 1, 16, 16, 1)), (4096, (64, 1, 64, 1, 64, 64, 1))):
            assert resolve(NAMED["monarch"], d, d).axes == resolve(NAMED["monarch"], d, d, "round").axes == axes

    @pytest.mark.parametrize(
        ("d", "first", "second"),
        [(768, 24, 32), (512, 16, 32), (44, 4, 11), (997, 27, 37)],
        ids=["balanced", "no square", "small", "a prime pads"],
    )
    def test_balances_the_blocks_of_a_width_that_is_no_square(self, d: int, first: int, second: int) -> None:
        dims = resolve(NAMED["monarch"], d, d)
        assert sorted((dims.alpha, dims.gamma)) == sorted((dims.epsilon, dims.phi)) == [first, second]

    @given(theta=strategies.thetas(), d_in=strategies.widths(), d_out=strategies.widths())
    def test_gives_an_absent_axis_size_one(self, theta: Theta, d_in: int, d_out: int) -> None:
        dims = resolve(theta, d_in, d_out)
        assert all(size == 1 for size, exponent in zip(dims.axes, theta.exponents, strict=True) if exponent == 0)

    @pytest.mark.parametrize("fact", golden.normalisations(), ids=lambda fact: str(fact.weights))
    def test_normalises_first(self, fact: golden.Normalisation) -> None:
        normalised = Theta.normalise(fact.weights)
        assert resolve(normalised, 1024, 1024, "round").axes == fact.axes_1024
        if fact.accepted:
            assert resolve(Theta.of(fact.weights), 1024, 1024) == resolve(normalised, 1024, 1024)

    @given(theta=strategies.thetas(), d_in=strategies.widths(300), d_out=strategies.widths(300))
    @example(theta=Theta.normalise((1, 4, 1, 2, 5, 0, 0)), d_in=16, d_out=16)
    @example(theta=Theta.normalise((1, 1, 0, 3, 2, 3, 0.25)), d_in=7, d_out=7)
    @example(theta=Theta.normalise((3, 3, 1, 2, 5, 2, 0)), d_in=5, d_out=284)
    def test_makes_a_theta_and_its_swap_cost_the_same(self, theta: Theta, d_in: int, d_out: int) -> None:
        here, there = cost(resolve(theta, d_in, d_out)), cost(resolve(theta.swapped(), d_in, d_out))
        assert (here.params, here.macs) == (there.params, there.macs)

    def test_does_not_depend_on_who_asked_before(self) -> None:
        layers = list(product(NAMED.values(), (44, 128), (44, 512)))
        forwards = [resolve(*layer) for layer in layers]
        assert [resolve(*layer) for layer in reversed(layers)] == forwards[::-1]


def _promises_full_rank(theta: Theta, d_in: int, d_out: int) -> bool:
    """Whether neither cut of the continuous structure is narrower than the layer: SCIENCE.md, 1.5, before rounding."""
    a, b, g, d, e, f, r = theta.normalised().exponents
    narrow = min(math.log(d_in), math.log(d_out))
    a_cut = (f + d) * math.log(d_out) + r * narrow + (g + b) * math.log(d_in)
    b_cut = (f + e) * math.log(d_out) + r * narrow + (g + a) * math.log(d_in)
    return min(a_cut, b_cut) >= narrow - EXACT
