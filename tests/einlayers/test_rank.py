from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from einlayers.dims import Dims, resolve
from einlayers.rank import Axes, generic_rank
from einlayers.taxonomy import rank_bound
from einlayers.theta import Theta
from tests import golden, strategies

AXES_TO_CROP = Dims(alpha=1, beta=2, gamma=2, delta=4, epsilon=2, phi=1, rho=1, d_in=4, d_out=8)
"""The fifth output opens a second row of the only output block."""


class TestMeasuredRank:
    def test_is_the_rank_of_every_golden_layer_after_padding_and_cropping(self) -> None:
        ranks = golden.layer_ranks()
        assert [generic_rank(row.axes, row.d_in, row.d_out) for row in ranks] == [row.rank for row in ranks]

    def test_holds_for_all_axes_up_to_three_but_the_two_known_ones(self) -> None:
        below = {}
        for axes in _all_axes(3):
            d_in, d_out = _widths(axes)
            measured, bound = _measured(axes, d_in, d_out), generic_rank(axes, d_in, d_out)
            if measured != bound:
                below[axes] = (bound, measured)
        assert below == {row.axes: (row.bound, row.rank) for row in golden.rank_exceptions()}

    def test_holds_for_every_crop_of_axes_up_to_two(self) -> None:
        wrong = [
            (axes, d_in, d_out)
            for axes in _all_axes(2)
            for d_in in range(1, _widths(axes)[0] + 1)
            for d_out in range(1, _widths(axes)[1] + 1)
            if _measured(axes, d_in, d_out) != generic_rank(axes, d_in, d_out)
        ]
        assert wrong == []

    @given(theta=strategies.thetas(), d_in=st.integers(1, 80), d_out=st.integers(1, 80))
    def test_never_exceeds_the_bound(self, theta: Theta, d_in: int, d_out: int) -> None:
        dims = resolve(theta, d_in, d_out)
        assert _measured(dims.axes, d_in, d_out) <= rank_bound(dims)

    @pytest.mark.parametrize("fact", golden.pencil_exceptions(), ids=lambda fact: str(fact.axes))
    def test_falls_below_the_bound_where_it_is_known_to(self, fact: golden.RankException) -> None:
        d_in, d_out = _widths(fact.axes)
        assert generic_rank(fact.axes, d_in, d_out) == fact.bound
        assert _measured(fact.axes, d_in, d_out) == fact.rank

    @pytest.mark.parametrize("axes", [(5, 7, 2, 7, 10, 1, 1), (2, 2, 2, 3, 3, 1, 1), (4, 5, 2, 6, 7, 1, 1)])
    def test_falls_below_the_bound_by_what_two_kronecker_blocks_share(self, axes: Axes) -> None:
        # Two blocks A1 (x) B1 and A2 (x) B2 meet in the meet of the A times the meet of the B, which no cut sees.
        alpha, beta, _, delta, epsilon, _, _ = axes
        d_in, d_out = _widths(axes)
        shared = max(0, 2 * alpha - delta) * max(0, 2 * beta - epsilon)
        assert _measured(axes, d_in, d_out) == generic_rank(axes, d_in, d_out) - shared


class TestBound:
    @given(dims=strategies.full_dims())
    def test_is_the_narrowest_of_width_and_both_cuts_without_cropping(self, dims: Dims) -> None:
        a, b, g, d, e, f, r = dims.axes
        assert rank_bound(dims) == min(a * b * g, d * e * f, f * d * r * g * b, f * e * r * g * a)

    @given(dims=strategies.full_dims())
    def test_is_the_same_for_the_swapped_and_the_transposed_layer(self, dims: Dims) -> None:
        assert rank_bound(dims) == rank_bound(strategies.swap(dims)) == rank_bound(strategies.transpose(dims))

    @given(dims=strategies.full_dims(), d_in=st.integers(1, 300), d_out=st.integers(1, 300))
    def test_is_never_raised_by_cropping_or_padding(self, dims: Dims, d_in: int, d_out: int) -> None:
        assert generic_rank(dims.axes, d_in, d_out) <= min(rank_bound(dims), d_in, d_out)

    @given(dims=strategies.full_dims(), d_in=st.integers(1, 300), d_out=st.integers(1, 300))
    def test_never_falls_when_a_feature_is_added(self, dims: Dims, d_in: int, d_out: int) -> None:
        rank = generic_rank(dims.axes, d_in, d_out)
        assert rank <= min(generic_rank(dims.axes, d_in + 1, d_out), generic_rank(dims.axes, d_in, d_out + 1))

    @given(dims=strategies.full_dims(), d_in=st.integers(1, 300), d_out=st.integers(1, 300))
    @example(dims=AXES_TO_CROP, d_in=4, d_out=4)
    @example(dims=strategies.transpose(AXES_TO_CROP), d_in=4, d_out=4)
    def test_rises_by_no_more_than_one_with_a_feature(self, dims: Dims, d_in: int, d_out: int) -> None:
        rank = generic_rank(dims.axes, d_in, d_out)
        assert max(generic_rank(dims.axes, d_in + 1, d_out), generic_rank(dims.axes, d_in, d_out + 1)) <= rank + 1


def _all_axes(largest: int) -> list[Axes]:
    sizes = range(1, largest + 1)
    return list(product(sizes, sizes, sizes, sizes, sizes, sizes, sizes))


def _widths(axes: Axes) -> tuple[int, int]:
    alpha, beta, gamma, delta, epsilon, phi, _ = axes
    return alpha * beta * gamma, delta * epsilon * phi


def _measured(axes: Axes, d_in: int, d_out: int) -> int:
    """The numerical rank of a random member, made of Kronecker products block by block."""
    alpha, beta, gamma, delta, epsilon, phi, rho = axes
    draw = np.random.default_rng(list(axes)).standard_normal
    A, B = draw((phi, gamma, rho, delta, alpha)), draw((phi, gamma, rho, epsilon, beta))
    W = np.zeros((phi, gamma, epsilon * delta, beta * alpha))
    for f, g, r in np.ndindex(phi, gamma, rho):
        W[f, g] += np.kron(B[f, g, r], A[f, g, r])
    whole = np.concatenate([np.concatenate(row, axis=1) for row in W])
    return int(np.linalg.matrix_rank(whole[:d_out, :d_in]))
