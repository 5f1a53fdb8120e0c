import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einlayers.dims import Dims
from einlayers.errors import FieldError
from einlayers.families import (
    MAX_CORES,
    BTTAxes,
    HeadCase,
    balanced_split,
    btt_axes,
    btt_dims,
    head_aligned_dims,
    low_rank_dims,
    monarch_dims,
)
from einlayers.taxonomy import cost, rank_bound
from tests import golden

MODEL_WIDTHS = [256, 320, 384, 512, 640, 768, 1000, 1024, 1280, 1536, 2048, 3072, 4096, 5120, 8192, 12288, 16384]

MONARCHS_WHOLE = [row for row in golden.monarchs() if min(row.d_in, row.d_out) % row.num_blocks**2 == 0]
"""Where num_blocks squared divides the smaller width, ours is the papers' layer."""

MONARCHS_PADDED = [row for row in golden.monarchs() if row.d_in % row.num_blocks or row.d_out % row.num_blocks]
"""The papers' layer pads these widths too."""

MONARCHS_ROUNDED = [row for row in golden.monarchs() if row not in MONARCHS_WHOLE and row not in MONARCHS_PADDED]
"""The papers' layer leaves some pairs of blocks unconnected there."""


class TestMonarch:
    @pytest.mark.parametrize(
        "row", MONARCHS_WHOLE, ids=lambda row: f"{row.d_in} to {row.d_out}, {row.num_blocks} blocks"
    )
    def test_has_the_papers_parameters_where_blocks_divide_the_width(self, row: golden.Monarch) -> None:
        dims = monarch_dims(row.d_in, row.d_out, row.num_blocks)
        assert cost(dims).params == cost(dims).macs == row.params
        assert row.params == (row.d_in + row.d_out) * min(row.d_in, row.d_out) // row.num_blocks
        assert cost(dims).params / (row.d_in * row.d_out) == row.share_of_dense
        assert (dims.padding_in, dims.padding_out) == (0, 0)

    @pytest.mark.parametrize(
        "row", MONARCHS_ROUNDED, ids=lambda row: f"{row.d_in} to {row.d_out}, {row.num_blocks} blocks"
    )
    def test_spends_more_than_the_papers_to_join_every_pair_of_blocks_elsewhere(self, row: golden.Monarch) -> None:
        dims = monarch_dims(row.d_in, row.d_out, row.num_blocks)
        assert cost(dims).params > row.params
        assert cost(dims).params / (row.d_in * row.d_out) > row.share_of_dense
        assert rank_bound(dims) == min(row.d_in, row.d_out)

    def test_costs_the_papers_parameters_and_the_rank_of_the_padding_where_the_blocks_fit_a_padded_width(self) -> None:
        (row,) = MONARCHS_PADDED
        dims = monarch_dims(row.d_in, row.d_out, row.num_blocks)
        assert cost(dims).params == row.params
        assert cost(dims).params / (row.d_in * row.d_out) == row.share_of_dense
        assert (dims.inputs, dims.outputs, rank_bound(dims)) == (1024, 1024, 977)

    def test_is_the_block_tensor_train_of_the_papers(self) -> None:
        row = golden.monarch_as_btt()
        dims = monarch_dims(row.d, row.d, row.num_blocks)
        assert (dims.axes, cost(dims).params) == (row.axes, row.params)

    def test_refuses_more_blocks_than_features(self) -> None:
        with pytest.raises(FieldError, match=r"^num_blocks: expected a whole number from 1 to 8, got 9"):
            monarch_dims(8, 16, 9)

    @given(st.integers(1, 200), st.integers(1, 200), st.data())
    def test_holds_every_feature_at_full_rank(self, d_in: int, d_out: int, data: st.DataObject) -> None:
        dims = monarch_dims(d_in, d_out, data.draw(st.integers(1, math.isqrt(min(d_in, d_out)))))
        assert dims.inputs >= d_in
        assert dims.outputs >= d_out
        assert dims.rho * dims.gamma * dims.phi >= min(d_in, d_out)


class TestTwoCores:
    def test_multiply_their_parameters_by_the_rank(self) -> None:
        first, third = btt_dims(768, 3072, 1), btt_dims(768, 3072, 3)
        assert third.axes == (*first.axes[:-1], 3)
        assert cost(third).params == 3 * cost(first).params

    def test_are_split_as_evenly_as_the_width_allows(self) -> None:
        assert sorted(btt_dims(768, 768, 1).axes) == [1, 1, 1, 24, 24, 32, 32]

    def test_have_an_axis_of_every_kind_that_an_einsum_of_two_factors_can_have(self) -> None:
        assert len(btt_dims(64, 64, 1).axes) == golden.index_classes()[2]

    def test_keep_full_rank_where_the_widths_differ(self) -> None:
        assert rank_bound(btt_dims(512, 608, 1)) == 512

    def test_refuse_a_rank_of_zero(self) -> None:
        with pytest.raises(FieldError, match=r"^rank: expected a whole number from 1"):
            btt_dims(64, 64, 0)


class TestLowRank:
    def test_is_two_thin_matrices(self) -> None:
        dims = low_rank_dims(768, 3072, 24)
        assert cost(dims).params == 24 * (768 + 3072)
        assert rank_bound(dims) == 24

    @pytest.mark.parametrize("rank", [0, -1, 2.0, True])
    def test_refuses_what_is_no_rank(self, rank: object) -> None:
        with pytest.raises(FieldError, match=r"^rank: expected a whole number from 1") as caught:
            low_rank_dims(64, 64, rank)  # type: ignore[arg-type]  # the point of the test
        assert caught.value.got is rank


class TestBalancedSplit:
    @pytest.mark.parametrize(
        ("width", "num_parts", "sizes"),
        [
            (4096, 3, (16, 16, 16)),
            (4096, 4, (8, 8, 8, 8)),
            (1024, 3, (8, 8, 16)),
            (768, 2, (24, 32)),
            (768, 3, (8, 8, 12)),
            (1000, 3, (10, 10, 10)),
            (997, 3, (10, 10, 10)),
            (2**20, 3, (64, 128, 128)),
            (11, 3, (2, 2, 3)),
            (1, 3, (1, 1, 1)),
            (13, 1, (13,)),
        ],
    )
    def test_is_the_most_even_that_pads_little(self, width: int, num_parts: int, sizes: tuple[int, ...]) -> None:
        assert balanced_split(width, num_parts) == sizes

    @given(st.integers(1, 2**20), st.integers(1, 3))
    def test_holds_every_feature(self, width: int, num_parts: int) -> None:
        sizes = balanced_split(width, num_parts)
        assert len(sizes) == num_parts
        assert math.prod(sizes) >= width
        assert sizes == tuple(sorted(sizes))

    @pytest.mark.parametrize("num_parts", range(2, MAX_CORES + 1))
    def test_pads_no_power_of_two(self, num_parts: int) -> None:
        assert [math.prod(balanced_split(2**k, num_parts)) for k in range(13)] == [2**k for k in range(13)]

    @pytest.mark.parametrize(("num_parts", "from_width", "limit"), [(3, 256, 0.04), (3, 1300, 0.02), (4, 256, 0.07)])
    def test_pads_little_at_any_width(self, num_parts: int, from_width: int, limit: float) -> None:
        for width in range(from_width, from_width + 500):
            assert math.prod(balanced_split(width, num_parts)) <= (1 + limit) * width, width

    @pytest.mark.parametrize("width", MODEL_WIDTHS)
    def test_does_not_pad_the_widths_of_models(self, width: int) -> None:
        assert math.prod(balanced_split(width, 3)) == width

    def test_refuses_too_many_parts(self) -> None:
        with pytest.raises(FieldError, match=r"^num_parts: expected a whole number from 1 to 8, got 9"):
            balanced_split(64, 9)


class TestAnyNumberOfCores:
    @pytest.mark.parametrize("row", golden.chains(), ids=lambda row: f"{row.num_cores} cores of rank {row.rank}")
    def test_are_split_evenly_and_cost_what_the_papers_say(self, row: golden.Chain) -> None:
        axes = btt_axes(row.d, row.d, row.num_cores, row.rank)
        assert axes.m == axes.n == (row.m,) * row.num_cores
        assert (axes.cost.params, axes.cost.macs) == (row.params, row.macs)

    @pytest.mark.parametrize(("d_in", "d_out"), [(64, 64), (512, 608), (997, 1009), (768, 3072), (3072, 768)])
    @pytest.mark.parametrize("rank", [1, 3])
    def test_of_two_are_the_dims_of_the_two_factor_layer(self, d_in: int, d_out: int, rank: int) -> None:
        axes, dims = btt_axes(d_in, d_out, 2, rank), btt_dims(d_in, d_out, rank)
        assert axes.cost == cost(dims)
        assert axes.rank_bound == rank_bound(dims)
        assert (axes.padding_in, axes.padding_out) == (dims.padding_in, dims.padding_out)

    @given(st.integers(1, 2000), st.integers(1, 2000), st.integers(2, 4))
    def test_hold_every_feature_and_keep_the_rank_full_but_for_padding(
        self, d_in: int, d_out: int, num_cores: int
    ) -> None:
        axes = btt_axes(d_in, d_out, num_cores, 1)
        assert axes.inputs >= d_in
        assert axes.outputs >= d_out
        padding = (1 + axes.padding_in) * (1 + axes.padding_out)
        assert axes.rank_bound * padding >= min(d_in, d_out)

    @pytest.mark.parametrize(("d_in", "d_out"), [(512, 608), (768, 3072), (3072, 768), (997, 1009), (1000, 1000)])
    @pytest.mark.parametrize("num_cores", [2, 3, 4])
    def test_have_full_rank_at_the_widths_of_models(self, d_in: int, d_out: int, num_cores: int) -> None:
        assert btt_axes(d_in, d_out, num_cores, 1).rank_bound == min(d_in, d_out)

    def test_have_the_same_axes_at_every_rank(self) -> None:
        assert btt_axes(512, 608, 3, 5).axes == btt_axes(512, 608, 3, 1).axes

    @pytest.mark.parametrize(
        ("changed", "field"),
        [
            ({"d_in": 0}, "d_in"),
            ({"d_out": 2.5}, "d_out"),
            ({"num_cores": 1}, "num_cores"),
            ({"num_cores": 9}, "num_cores"),
            ({"num_cores": True}, "num_cores"),
            ({"rank": 0}, "rank"),
        ],
    )
    def test_refuse_a_bad_argument_and_name_it(self, changed: dict[str, object], field: str) -> None:
        arguments: dict[str, object] = {"d_in": 64, "d_out": 64, "num_cores": 3, "rank": 1, **changed}
        with pytest.raises(FieldError, match=f"^{field}: expected a whole number from") as caught:
            btt_axes(**arguments)  # type: ignore[arg-type]  # the point of the test
        assert caught.value.got is changed[field]

    def test_are_never_fewer_features_than_the_layer_has(self) -> None:
        with pytest.raises(FieldError, match=r"^d_in: expected a whole number from 1 to 8, got 9"):
            BTTAxes(m=(2, 2, 2), n=(2, 2, 2), rank=1, d_in=9, d_out=8)

    @pytest.mark.parametrize(("m", "n"), [((8,), (8,)), ((2, 4), (2, 2, 2))])
    def test_need_an_input_and_an_output_axis_each(self, m: tuple[int, ...], n: tuple[int, ...]) -> None:
        with pytest.raises(FieldError, match=r"^m, n: expected one input and one output axis"):
            BTTAxes(m=m, n=n, rank=1, d_in=8, d_out=8)


class TestHeadAligned:
    @pytest.mark.parametrize("row", golden.head_aligned(), ids=lambda row: f"{row.num_heads} heads")
    def test_have_the_axes_of_the_papers(self, row: golden.HeadAligned) -> None:
        assert head_aligned_dims(row.num_heads, row.head_width, row.case).axes == row.axes

    @pytest.mark.parametrize("row", golden.head_aligned(), ids=lambda row: f"{row.num_heads} heads")
    @pytest.mark.parametrize("case", ["(d|n|n|d)", "(n|d|d|n)"])
    def test_have_full_rank_and_the_cost_of_the_papers_in_both_directions(
        self, case: HeadCase, row: golden.HeadAligned
    ) -> None:
        dims = head_aligned_dims(row.num_heads, row.head_width, case)
        assert (dims.d_in, dims.d_out, dims.inputs, dims.outputs) == (row.width,) * 4
        assert (cost(dims).params, cost(dims).macs) == (row.params, row.macs)
        assert rank_bound(dims) == row.rank == row.width

    @pytest.mark.parametrize(
        ("case", "params", "rank"), [("(n|d|d|n)", 58_368, 768), ("(d|n|d|n)", 18_432, 144), ("(n|d|n|d)", 98_304, 768)]
    )
    def test_differ_by_case_in_cost_and_rank(self, case: HeadCase, params: int, rank: int) -> None:
        dims = head_aligned_dims(12, 64, case)
        assert (cost(dims).params, rank_bound(dims)) == (params, rank)

    def test_are_each_others_transposes(self) -> None:
        inputs, outputs = head_aligned_dims(12, 64, "(n|d|d|n)", 2), head_aligned_dims(12, 64, "(d|n|n|d)", 2)
        assert outputs == Dims.of(
            (inputs.epsilon, 1, inputs.phi, 1, inputs.alpha, inputs.gamma, inputs.rho), inputs.d_out, inputs.d_in
        )

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"case": "(n|n|d|d)"}, r"case: expected one of \(n\|d\|d\|n\), .* got '\(n\|n\|d\|d\)'"),
            ({"num_heads": 0}, "num_heads: expected a whole number from 1"),
            ({"head_width": 1.5}, "head_width: expected a whole number from 1"),
            ({"rank": 0}, "rank: expected a whole number from 1"),
        ],
    )
    def test_refuse_a_bad_argument_and_name_it(self, changed: dict[str, object], expected: str) -> None:
        arguments: dict[str, object] = {"num_heads": 4, "head_width": 8, "case": "(n|d|d|n)", "rank": 1, **changed}
        with pytest.raises(FieldError, match=f"^{expected}"):
            head_aligned_dims(**arguments)  # type: ignore[arg-type]  # the point of the test
