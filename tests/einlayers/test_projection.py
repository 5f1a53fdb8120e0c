# O output features, I input features; N blocks, X and Y the rows and columns of a block

import math
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.typing import NDArray
from torch import Tensor

from einlayers.dims import Dims, resolve
from einlayers.errors import FieldError
from einlayers.families import low_rank_dims, monarch_dims
from einlayers.linear import EinsumLinear
from einlayers.projection import Descent, Projection, descend, project, truncated_svd
from einlayers.rank import Axes
from einlayers.theta import NAMED, Theta
from tests import golden, strategies

RECOVERED = 1e-10
"""The relative error below which a matrix came back as it was."""

TOLERANCE = 1e-10

GENERAL = Theta.of((0.5, 0.25, 0.25, 0.25, 0.5, 0.25, 0.25))
THIRDS = Theta.parse("(0.33|0|0.67|0|0.67|0.33|0.2)")

THETAS = {**NAMED, "every axis": GENERAL, "every axis, swapped": GENERAL.swapped()}

PARTLY_LIVE = [
    Dims.of((3, 6, 1, 4, 8, 1, 1), 17, 31),
    Dims.of((2, 2, 2, 2, 2, 2, 2), 7, 8),
    Dims.of((2, 3, 2, 3, 2, 2, 1), 9, 11),
    Dims.of((3, 2, 3, 2, 3, 2, 2), 15, 11),
]
"""Axes with blocks whose live entries form no rectangle."""


class TestRecovery:
    @pytest.mark.parametrize("theta", THETAS.values(), ids=THETAS)
    @pytest.mark.parametrize(("d_in", "d_out"), [(16, 16), (24, 60), (60, 24), (17, 31), (1, 5), (97, 101)])
    def test_returns_a_matrix_that_has_the_structure(self, theta: Theta, d_in: int, d_out: int) -> None:
        weight_OI = _structured(resolve(theta, d_in, d_out))
        projection = project(weight_OI, theta)
        assert projection.error < RECOVERED
        torch.testing.assert_close(_dense(projection), weight_OI, atol=TOLERANCE, rtol=TOLERANCE)

    @settings(max_examples=30)
    @given(dims=strategies.full_dims(4))
    def test_returns_a_matrix_of_any_axes(self, dims: Dims) -> None:
        projection = project(_structured(dims), dims)
        assert projection.optimal
        assert projection.error < RECOVERED

    @pytest.mark.parametrize("dims", PARTLY_LIVE, ids=str)
    def test_completes_a_matrix_whose_blocks_are_partly_live(self, dims: Dims) -> None:
        projection = project(_structured(dims), dims)
        assert not projection.optimal
        assert projection.error < RECOVERED

    @pytest.mark.parametrize(
        "dims",
        [resolve(NAMED["dense"], 7, 8), low_rank_dims(7, 8, 9), monarch_dims(7, 8, 1), replace(PARTLY_LIVE[1], rho=4)],
        ids=str,
    )
    def test_returns_every_matrix_where_the_rank_is_full(self, dims: Dims) -> None:
        projection = project(_weight(dims), dims)
        assert projection.optimal
        assert projection.error < RECOVERED

    @pytest.mark.parametrize("structure", ["kronecker", PARTLY_LIVE[0]], ids=str)
    def test_returns_the_zero_matrix(self, structure: str | Dims) -> None:
        projection = project(torch.zeros(31, 17), structure)
        assert (projection.error, projection.optimal) == (0, True)
        assert not projection.layer().to_dense().any()


class TestOptimality:
    @settings(max_examples=40)
    @given(dims=strategies.full_dims(4))
    def test_loses_the_discarded_singular_values_of_every_block(self, dims: Dims) -> None:
        weight_OI = _weight(dims)
        projection = project(weight_OI, dims)
        assert projection.optimal
        assert _squared_error(projection, weight_OI) == pytest.approx(_discarded(weight_OI, dims), abs=TOLERANCE)

    @pytest.mark.parametrize("theta", [NAMED["monarch"], NAMED["btt"], NAMED["btt"].swapped()], ids=str)
    @pytest.mark.parametrize(("d_in", "d_out"), [(17, 31), (23, 45), (45, 23)])
    def test_loses_no_more_in_padded_block_tensor_trains(self, theta: Theta, d_in: int, d_out: int) -> None:
        weight_OI = _random(d_out, d_in)
        projection = project(weight_OI, theta)
        assert max(projection.dims.padding_in, projection.dims.padding_out) > 0
        assert projection.optimal
        expected = _discarded(weight_OI, projection.dims)
        assert _squared_error(projection, weight_OI) == pytest.approx(expected, rel=TOLERANCE)

    @pytest.mark.parametrize("rank", [1, 4, 11])
    def test_of_low_rank_is_that_of_the_truncated_decomposition(self, rank: int) -> None:
        weight_OI = _random(12, 20)
        sigma = np.linalg.svd(weight_OI.numpy(), compute_uv=False)
        expected = math.sqrt((sigma[rank:] ** 2).sum() / (sigma**2).sum())
        assert project(weight_OI, low_rank_dims(20, 12, rank)).error == pytest.approx(expected, rel=TOLERANCE)

    @pytest.mark.parametrize("theta", THETAS.values(), ids=THETAS)
    def test_is_not_beaten_by_any_matrix_near_by(self, theta: Theta) -> None:
        weight_OI = _random(30, 24)
        projection = project(weight_OI, theta)
        for seed, scale in product(range(5), (1e-6, 1e-3, 1e-1, 1.0)):
            A, B = _factors(projection.dims, seed)
            other = replace(projection, A=projection.A + scale * A, B=projection.B + scale * B)
            assert _relative_error(other, weight_OI) >= projection.error

    @pytest.mark.parametrize("axes", [(4, 3, 2, 2, 4, 3, 1), (6, 1, 4, 1, 6, 4, 1), (4, 6, 1, 6, 4, 1, 1)], ids=str)
    def test_never_falls_with_the_rank(self, axes: Axes) -> None:
        weight_OI = _random(24, 24)
        errors = [project(weight_OI, replace(Dims.of(axes, 24, 24), rho=rho)).error for rho in range(1, 9)]
        assert errors == sorted(errors, reverse=True)

    @pytest.mark.parametrize("theta", THETAS.values(), ids=THETAS)
    def test_is_the_same_for_the_same_matrices_under_another_name(self, theta: Theta) -> None:
        weight_OI, dims = _random(30, 24), resolve(theta, 24, 30)
        assert (dims.padding_in, dims.padding_out) == (0, 0)
        error, swapped_OI = project(weight_OI, dims).error, _features_swapped(weight_OI, dims)
        assert project(swapped_OI, strategies.swap(dims)).error == pytest.approx(error, abs=TOLERANCE)
        # What is called transposed exchanges the factors too, and with them the order of the features in a block.
        transposed = strategies.transpose(dims)
        assert project(swapped_OI.mT, transposed).error == pytest.approx(error, abs=TOLERANCE)
        assert project(weight_OI.mT, strategies.swap(transposed)).error == pytest.approx(error, abs=TOLERANCE)

    @pytest.mark.parametrize("name", ["low-rank", "monarch", "btt"])
    @pytest.mark.parametrize(("d_in", "d_out"), [(36, 36), (24, 30), (17, 31)])
    def test_is_the_same_for_the_transposed_block_tensor_train(self, name: str, d_in: int, d_out: int) -> None:
        weight_OI = _random(d_out, d_in)
        transposed = project(weight_OI.mT, NAMED[name].transposed())
        assert transposed.error == pytest.approx(project(weight_OI, NAMED[name]).error, abs=TOLERANCE)

    def test_counts_features_that_the_axes_drop(self) -> None:
        weight_OI = _random(80, 256)
        projection = project(weight_OI, THIRDS, policy="round")
        d_in, d_out = projection.dims.inputs, projection.dims.outputs
        assert (d_in < 256, d_out < 80, projection.optimal) == (True, True, True)
        kept = weight_OI[:d_out, :d_in]
        expected = _discarded(kept, projection.dims) + weight_OI.square().sum().item() - kept.square().sum().item()
        assert _squared_error(projection, weight_OI) == pytest.approx(expected, rel=TOLERANCE)

    def test_splits_the_singular_values_evenly(self) -> None:
        for projection in (project(_random(31, 17), "btt"), project(_random(31, 17), PARTLY_LIVE[0])):
            norms = [factor.square().sum((1, 4)) for factor in (projection.A, projection.B)]
            torch.testing.assert_close(*norms, atol=TOLERANCE, rtol=TOLERANCE)


class TestCompletion:
    @pytest.mark.parametrize("rank", [1, 3, 7])
    def test_reaches_the_truncated_decomposition_from_anywhere_where_all_is_live(self, rank: int) -> None:
        target_NXY, live_XY = _random(3, 8, 11), torch.ones(8, 11, dtype=torch.bool)
        sigma_NK = np.linalg.svd(target_NXY.numpy(), compute_uv=False)
        U_NXr, V_NrY = truncated_svd(target_NXY, rank)
        for seed in range(3):
            start_NrY = torch.randn(3, rank, 11, generator=torch.Generator().manual_seed(seed)).double()
            descent = Descent(num_sweeps=3000, tolerance=0.0)
            error_N, A_NXr, B_NrY = descend(target_NXY, live_XY, start_NrY, descent)
            assert error_N.numpy() == pytest.approx((sigma_NK[:, rank:] ** 2).sum(1), rel=TOLERANCE)
            torch.testing.assert_close(A_NXr @ B_NrY, U_NXr @ V_NrY, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("dims", PARTLY_LIVE, ids=str)
    def test_is_at_least_as_near_as_the_decomposition_of_the_padded_matrix(self, dims: Dims) -> None:
        weight_OI = _weight(dims)
        projection = project(weight_OI, dims)
        assert not projection.optimal
        padded_OI = torch.zeros(dims.outputs, dims.inputs, dtype=torch.float64)
        padded_OI[: dims.d_out, : dims.d_in] = weight_OI
        filled = project(padded_OI, replace(dims, d_in=dims.inputs, d_out=dims.outputs))
        assert projection.error < _relative_error(replace(filled, dims=dims), weight_OI)

    @pytest.mark.parametrize("dims", [PARTLY_LIVE[0], PARTLY_LIVE[3]], ids=str)
    def test_is_as_near_as_the_best_of_many_gradient_descents(self, dims: Dims) -> None:
        weight_OI = _weight(dims)
        error = project(weight_OI, dims, num_sweeps=1000, tolerance=1e-9).error
        assert error <= min(_descended(weight_OI, dims, seed) for seed in range(2)) * (1 + 1e-3)

    @pytest.mark.parametrize("dims", PARTLY_LIVE, ids=str)
    def test_never_gets_worse_with_more_sweeps_or_restarts(self, dims: Dims) -> None:
        errors = [project(_weight(dims), dims, num_restarts=0, num_sweeps=n, tolerance=0.0).error for n in range(1, 7)]
        assert all(after <= before + TOLERANCE for before, after in pairwise(errors))
        errors = [project(_weight(dims), dims, num_restarts=n, num_sweeps=30).error for n in range(4)]
        assert all(after <= before + TOLERANCE for before, after in pairwise(errors))

    def test_stops_where_a_sweep_gains_too_little(self) -> None:
        weight_OI = _weight(PARTLY_LIVE[0])
        one, hasty, patient = (
            project(weight_OI, PARTLY_LIVE[0], num_restarts=0, num_sweeps=sweeps, tolerance=tolerance).error
            for sweeps, tolerance in ((1, 0.0), (200, 0.999), (200, 1e-6))
        )
        assert patient < hasty == one

    def test_is_the_same_for_the_same_seed_and_leaves_other_random_numbers_alone(self) -> None:
        dims, state = PARTLY_LIVE[2], torch.get_rng_state()
        first, again = (project(_weight(dims), dims, seed=3).layer(torch.zeros(dims.d_out)) for _ in range(2))
        assert torch.equal(first.to_dense(), again.to_dense())
        assert torch.equal(torch.get_rng_state(), state)

    def test_stays_finite_where_the_nearest_matrix_is_not_attained(self) -> None:
        # [[0, 1], [1, free]] is the limit of [[1/n, 1], [1, n]], which have rank 1, and has none itself.
        dims = Dims.of((1, 1, 1, 2, 2, 1, 1), 1, 3)
        weight_OI = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
        errors = [project(weight_OI, dims, num_sweeps=n, tolerance=0.0).error for n in (1, 10, 100, 300)]
        assert errors == sorted(errors, reverse=True)
        assert 0 < errors[-1] < 0.03
        assert project(weight_OI, dims, num_sweeps=300, tolerance=0.0).A.abs().max() < 100


class TestMonarch:
    """Theorem 1 of 2204.00595. Its outputs are ordered (position, block), ours (block, position): rows are transposed."""

    def test_loses_what_the_theorem_says(self) -> None:
        expected, weight_OI = golden.monarch_projection(), _rows_transposed(_sixteen_numbers())
        projection = project(weight_OI, _square_monarch(expected.m))
        assert weight_OI.square().sum().item() == expected.squared_norm
        assert _squared_error(projection, weight_OI) == pytest.approx(expected.squared_error, rel=1e-12)

    @pytest.mark.parametrize("block", golden.monarch_projection().blocks, ids=lambda block: f"{block.j}, {block.k}")
    def test_loses_in_every_block_what_the_theorem_says(self, block: golden.MonarchBlock) -> None:
        m, weight_OI = golden.monarch_projection().m, _rows_transposed(_sixteen_numbers())
        live = (slice(block.j * m, (block.j + 1) * m), slice(block.k * m, (block.k + 1) * m))
        kept_OI = _dense(project(weight_OI, _square_monarch(m)))
        assert torch.equal(weight_OI[live], torch.tensor(block.entries, dtype=torch.float64))
        lost = (kept_OI - weight_OI)[live].square().sum().item()
        assert lost == pytest.approx(block.squared_error, rel=TOLERANCE)

    @pytest.mark.parametrize("row", golden.fourier_projections(), ids=lambda row: f"{row.n} features")
    def test_keeps_the_square_root_of_n_of_the_fourier_matrix(self, row: golden.FourierProjection) -> None:
        weight_OI = _rows_transposed(_fourier(row.n))
        projection = project(weight_OI, _square_monarch(math.isqrt(row.n)))
        assert _squared_error(projection, weight_OI) == pytest.approx(row.squared_error, rel=TOLERANCE)
        assert row.squared_error == row.n - math.sqrt(row.n)

    @pytest.mark.parametrize("row", golden.fourier_projections(), ids=lambda row: f"{row.n} features")
    def test_recovers_the_fourier_matrix_with_transposed_columns(self, row: golden.FourierProjection) -> None:
        weight_OI = _rows_transposed(_rows_transposed(_fourier(row.n)).mT).mT
        projection = project(weight_OI, _square_monarch(math.isqrt(row.n)))
        expected = pytest.approx(row.squared_error_transposed, abs=RECOVERED**2 * row.n)
        assert _squared_error(projection, weight_OI) == expected
        torch.testing.assert_close(_dense(projection), weight_OI, atol=TOLERANCE, rtol=TOLERANCE)


class TestDtypes:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
        ids=str,
    )
    @pytest.mark.parametrize("structure", ["btt", PARTLY_LIVE[0]], ids=str)
    def test_are_kept_and_computed_in_double(self, dtype: torch.dtype, tolerance: float, structure: str | Dims) -> None:
        weight_OI = _random(31, 17).to(dtype)
        projection = project(weight_OI, structure)
        exact = project(weight_OI.double(), structure)
        assert projection.A.dtype == projection.B.dtype == projection.layer().to_dense().dtype == dtype
        torch.testing.assert_close(_dense(projection), _dense(exact), atol=5 * tolerance, rtol=tolerance)
        assert projection.error == pytest.approx(_relative_error(projection, weight_OI), rel=1e-9)

    @pytest.mark.parametrize("dims", [PARTLY_LIVE[0], Dims.of((3, 2, 3, 2, 4, 2, 2), 18, 16)], ids=str)
    def test_may_be_complex(self, dims: Dims) -> None:
        A, B = (torch.complex(*parts) for parts in zip(_factors(dims, 0), _factors(dims, 1), strict=True))
        weight_OI = _multiplied(A, B, dims)
        projection = project(weight_OI, dims)
        assert projection.error < RECOVERED
        torch.testing.assert_close(_dense(projection), weight_OI, atol=TOLERANCE, rtol=TOLERANCE)

    @pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
    @pytest.mark.parametrize("structure", ["btt", PARTLY_LIVE[0]], ids=str)
    def test_hold_weights_of_every_size(self, scale: float, structure: str | Dims) -> None:
        weight_OI = _random(31, 17)
        error = project(weight_OI, structure).error
        assert project(weight_OI * scale, structure).error == pytest.approx(error, rel=1e-6)


class TestLayer:
    @pytest.mark.parametrize("theta", THETAS.values(), ids=THETAS)
    def test_is_the_projected_matrix(self, theta: Theta) -> None:
        projection = project(_random(31, 17), theta)
        layer, x_BI, bias_O = projection.layer(_random(31)), _random(5, 17), _random(31)
        W_OI = _dense(projection)
        torch.testing.assert_close(layer.to_dense(), W_OI, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(layer(x_BI), x_BI @ W_OI.mT + bias_O, atol=TOLERANCE, rtol=TOLERANCE)
        other = EinsumLinear.from_dims(projection.dims)
        assert (repr(layer), layer.order) == (repr(other), other.order)

    def test_learns_and_leaves_the_projection_as_it_was(self) -> None:
        projection, bias_O = project(torch.nn.Linear(17, 31).weight, "btt"), torch.nn.Parameter(torch.zeros(31))
        layer, A = projection.layer(bias_O), projection.A.clone()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        layer(torch.ones(2, 17)).sum().backward()
        optimizer.step()
        assert len(list(layer.parameters())) == 3
        assert not torch.equal(layer.A, A)
        assert torch.equal(projection.A, A)
        assert not bias_O.any()
        assert not projection.A.requires_grad

    def test_refuses_a_bias_of_another_width(self) -> None:
        with pytest.raises(FieldError, match=r"^bias: expected the shape \(31,\), got \(1,\)"):
            project(_random(31, 17), "btt").layer(torch.zeros(1))


class TestErrors:
    @pytest.mark.parametrize(
        "weight",
        [torch.ones(3), torch.ones(2, 2, 2), torch.ones(0, 3), torch.ones(2, 2).long()]
        + [torch.full((2, 2), value) for value in (math.nan, math.inf)],
        ids=["vector", "cube", "empty", "integers", "NaN", "infinity"],
    )
    def test_refuses_a_weight_that_is_no_finite_matrix(self, weight: Tensor) -> None:
        with pytest.raises(FieldError, match=r"^weight: expected"):
            project(weight, "btt")

    def test_refuses_axes_for_other_widths(self) -> None:
        with pytest.raises(FieldError, match=r"^structure: expected axes for a layer 17 -> 31.*got '4 -> 4'"):
            project(_random(31, 17), _square_monarch(2))

    def test_refuses_a_structure_or_a_policy_that_is_unknown(self) -> None:
        with pytest.raises(FieldError, match=r"^theta: expected"):
            project(_random(4, 4), "bttt")
        with pytest.raises(FieldError, match=r"^policy: expected"):
            project(_random(4, 4), "btt", policy="opt")  # type: ignore[arg-type]  # the point of the test

    def test_refuses_a_descent_that_is_none(self) -> None:
        with pytest.raises(FieldError, match=r"^num_restarts: expected"):
            Descent(num_restarts=-1)
        with pytest.raises(FieldError, match=r"^num_sweeps: expected"):
            project(_random(4, 4), "btt", num_sweeps=0)
        for tolerance in (-1e-9, 1.0, math.nan):
            with pytest.raises(FieldError, match=r"^tolerance: expected"):
                Descent(tolerance=tolerance)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _weight(dims: Dims) -> Tensor:
    return _random(dims.d_out, dims.d_in)


def _factors(dims: Dims, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b, g, d, e, f, r = dims.axes
    A = torch.randn((f, d, r, g, a), generator=generator, dtype=torch.float64)
    return A, torch.randn((f, e, r, g, b), generator=generator, dtype=torch.float64)


def _structured(dims: Dims) -> Tensor:
    return _multiplied(*_factors(dims, 0), dims)


def _dense(projection: Projection) -> Tensor:
    wide = torch.complex128 if projection.A.is_complex() else torch.float64
    return _multiplied(projection.A.to(wide), projection.B.to(wide), projection.dims)


def _multiplied(A: Tensor, B: Tensor, dims: Dims) -> Tensor:
    """W as a grid of blocks (phi, gamma), each a sum over rho of Kronecker products; what the axes do not hold is zero."""
    A_fdrga, B_fergb = A.numpy(), B.numpy()
    grid = [
        [
            np.sum([np.kron(B_fergb[f, :, r, g, :], A_fdrga[f, :, r, g, :]) for r in range(dims.rho)], axis=0)
            for g in range(dims.gamma)
        ]
        for f in range(dims.phi)
    ]
    W_OI = torch.zeros(dims.d_out, dims.d_in, dtype=A.dtype)
    block = torch.from_numpy(np.block(grid))[: dims.d_out, : dims.d_in]
    W_OI[: block.shape[0], : block.shape[1]] = block
    return W_OI


def _relative_error(projection: Projection, weight_OI: Tensor) -> float:
    wide_OI = weight_OI.double()
    return float(torch.linalg.norm(_dense(projection) - wide_OI) / torch.linalg.norm(wide_OI))


def _squared_error(projection: Projection, weight_OI: Tensor) -> float:
    """What the projection says that it loses, squared and in the units of the weight."""
    return projection.error**2 * float(torch.linalg.norm(weight_OI)) ** 2


def _discarded(weight_OI: Tensor, dims: Dims) -> float:
    """The squared singular values beyond rho of every rearranged block, put together one entry at a time."""
    total = 0.0
    for f, g in product(range(dims.phi), range(dims.gamma)):
        sigma = np.linalg.svd(_rearranged(weight_OI.numpy(), dims, f, g), compute_uv=False)
        total += float((sigma[dims.rho :] ** 2).sum())
    return total


def _rearranged(W_OI: NDArray[np.float64], dims: Dims, f: int, g: int) -> NDArray[np.float64]:
    """Block (f, g) as the matrix [(delta, alpha), (epsilon, beta)]; zero where W has no entry."""
    block_XY = np.zeros((dims.delta * dims.alpha, dims.epsilon * dims.beta))
    for d, a, e, b in product(*map(range, (dims.delta, dims.alpha, dims.epsilon, dims.beta))):
        row, column = (f * dims.epsilon + e) * dims.delta + d, (g * dims.beta + b) * dims.alpha + a
        if row < W_OI.shape[0] and column < W_OI.shape[1]:
            block_XY[d * dims.alpha + a, e * dims.beta + b] = W_OI[row, column]
    return block_XY


def _features_swapped(weight_OI: Tensor, dims: Dims) -> Tensor:
    """The matrix with the features of every block reordered from (second, first) to (first, second)."""
    W_fedgba = weight_OI.reshape(dims.phi, dims.epsilon, dims.delta, dims.gamma, dims.beta, dims.alpha)
    return W_fedgba.permute(0, 2, 1, 3, 5, 4).reshape(weight_OI.shape)


def _descended(weight_OI: Tensor, dims: Dims, seed: int) -> float:
    """The relative error that a quasi-Newton method reaches from a random point: an oracle that knows no blocks."""
    layer = EinsumLinear.from_dims(dims, bias=False, dtype=torch.float64)
    for factor, start in zip((layer.A, layer.B), _factors(dims, seed), strict=True):
        factor.data.copy_(start)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        squared = (layer.to_dense() - weight_OI).square().sum()
        squared.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return squared

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return math.sqrt(loss().item() / weight_OI.square().sum().item())


def _square_monarch(m: int) -> Dims:
    """``m`` blocks of ``m`` x ``m`` in both factors."""
    return Dims.of((m, 1, m, 1, m, m, 1), m * m, m * m)


def _sixteen_numbers() -> Tensor:
    return torch.arange(16, dtype=torch.float64).reshape(4, 4)


def _rows_transposed(weight_OI: Tensor) -> Tensor:
    """Rows (l, j) of two equally long axes in the order (j, l)."""
    m = math.isqrt(weight_OI.shape[0])
    return weight_OI.reshape(m, m, -1).transpose(0, 1).reshape(weight_OI.shape)


def _fourier(n: int) -> Tensor:
    """The unitary matrix of the discrete Fourier transform."""
    index = np.arange(n)
    return torch.from_numpy(np.exp(-2j * np.pi * np.outer(index, index) / n) / math.sqrt(n))
