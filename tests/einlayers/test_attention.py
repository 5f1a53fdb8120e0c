# B batch, T tokens, D width, H heads, K width per head

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from einlayers.attention import Attention, head_aligned_attention
from einlayers.errors import FieldError
from einlayers.families import HeadCase
from einlayers.linear import EinsumLinear

TOLERANCE = 1e-10
"""Between float64 arithmetic in our order and in the order of plain loops."""

WIDTH, NUM_HEADS, HEAD_WIDTH = 12, 3, 4

CASES: list[HeadCase] = ["(n|d|d|n)", "(d|n|d|n)", "(n|d|n|d)", "(d|n|n|d)"]


class TestAttention:
    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("qk_norm", [True, False])
    def test_is_what_plain_loops_over_dense_matrices_compute(self, causal: bool, qk_norm: bool) -> None:
        attention, x_BTD = _awake(causal=causal, qk_norm=qk_norm), _inputs(2, 5, WIDTH)
        torch.testing.assert_close(attention(x_BTD), _loops(attention, x_BTD), atol=TOLERANCE, rtol=TOLERANCE)

    @pytest.mark.parametrize("case_out", CASES)
    @pytest.mark.parametrize("case_in", CASES)
    def test_is_so_for_every_case(self, case_in: HeadCase, case_out: HeadCase) -> None:
        attention, x_BTD = _awake(case_in=case_in, case_out=case_out, rank=2), _inputs(2, 3, WIDTH)
        torch.testing.assert_close(attention(x_BTD), _loops(attention, x_BTD), atol=TOLERANCE, rtol=TOLERANCE)

    def test_looks_at_no_later_token(self) -> None:
        attention, x_BTD = _awake(), _inputs(1, 5, WIDTH)
        changed_BTD = x_BTD.clone()
        changed_BTD[:, 3:] += 1
        assert torch.equal(attention(changed_BTD)[:, :3], attention(x_BTD)[:, :3])

    def test_keeps_every_leading_axis(self) -> None:
        attention, x_BBTD = _awake(), _inputs(2, 3, 5, WIDTH)
        torch.testing.assert_close(attention(x_BBTD)[1, 2], attention(x_BBTD[1, 2]), atol=TOLERANCE, rtol=TOLERANCE)

    def test_takes_an_empty_batch(self) -> None:
        assert _awake()(_inputs(0, 5, WIDTH)).shape == (0, 5, WIDTH)

    def test_meets_the_usual_scale_at_head_width_eight_and_falls_as_mup_asks(self) -> None:
        scales = [head_aligned_attention(4 * d, 4).scale for d in (8, 16, 64)]
        assert scales == pytest.approx([1 / math.sqrt(8), 1 / math.sqrt(8) / 2, 1 / math.sqrt(8) / 8])

    def test_starts_as_the_zero_map_that_still_learns(self) -> None:
        attention = head_aligned_attention(WIDTH, NUM_HEADS)
        y_BTD = attention(torch.randn(2, 5, WIDTH))
        assert torch.equal(y_BTD, torch.zeros(2, 5, WIDTH))
        y_BTD.backward(torch.randn(2, 5, WIDTH))
        grad = _einsum(attention.output).B.grad
        assert grad is not None
        assert grad.abs().max() > 0

    def test_takes_any_linear_layer_and_draws_query_key_value_and_output_in_this_order(self) -> None:
        def linear(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
            made.append(zero_init)
            return nn.Linear(d_in, d_out, bias=False)

        made: list[bool] = []
        torch.manual_seed(0)
        attention = Attention(WIDTH, NUM_HEADS, linear)
        torch.manual_seed(0)
        expected = [nn.Linear(WIDTH, WIDTH, bias=False).weight for _ in range(4)]
        assert made == [False, False, False, True]
        names = ["query.weight", "key.weight", "value.weight", "output.weight"]
        assert list(attention.state_dict()) == [*names, "query_norm.weight", "key_norm.weight"]
        for name, weight in zip(names, expected, strict=True):
            assert torch.equal(attention.state_dict()[name], weight)

    def test_has_a_factory_of_its_own_for_the_output(self) -> None:
        attention = Attention(WIDTH, NUM_HEADS, _dense, output=_btt, qk_norm=False)
        assert [type(layer) for layer in attention.children()] == [nn.Linear] * 3 + [EinsumLinear] + [nn.Identity] * 2


class TestHeadAlignment:
    @pytest.mark.parametrize("case_in", ["(n|d|d|n)", "(d|n|d|n)"])
    @pytest.mark.parametrize("name", ["query", "key", "value"])
    def test_gives_each_head_a_block_of_B(self, name: str, case_in: HeadCase) -> None:
        layer, x_TD = _einsum(_awake(case_in=case_in, rank=2).get_submodule(name)), _inputs(5, WIDTH)
        before_THK = layer(x_TD).view(5, NUM_HEADS, HEAD_WIDTH)
        for head in range(NUM_HEADS):
            changed = copy.deepcopy(layer)
            with torch.no_grad():
                changed.B[head] += 1
            moved_H = (changed(x_TD).view_as(before_THK) - before_THK).abs().amax((0, 2)) > 0
            assert moved_H.tolist() == [other == head for other in range(NUM_HEADS)]

    @pytest.mark.parametrize("case_out", ["(d|n|n|d)", "(d|n|d|n)"])
    def test_lets_the_output_read_each_head_by_a_block_of_A(self, case_out: HeadCase) -> None:
        layer, y_THK = _einsum(_awake(case_out=case_out, rank=2).output), _inputs(5, NUM_HEADS, HEAD_WIDTH)
        for head in range(NUM_HEADS):
            silenced_THK = y_THK.clone()
            silenced_THK[:, head] = 0
            layer.zero_grad()
            layer(silenced_THK.flatten(1)).sum().backward()
            assert layer.A.grad is not None
            live_H = layer.A.grad.abs().amax((0, 1, 2, 4)) > 0
            assert live_H.tolist() == [other != head for other in range(NUM_HEADS)]

    @pytest.mark.parametrize("case_in", ["(n|d|n|d)", "(d|n|n|d)"])
    def test_is_absent_where_the_output_blocks_are_not_the_heads(self, case_in: HeadCase) -> None:
        layer, x_TD = _einsum(_awake(case_in=case_in).query), _inputs(5, WIDTH)
        before_TD = layer(x_TD)
        with torch.no_grad():
            layer.B[0] += 1
        moved_D = (layer(x_TD) - before_TD).abs().amax(0) > 0
        assert moved_D.tolist() == [feature < NUM_HEADS for feature in range(WIDTH)]

    def test_has_transposed_structures_on_both_sides_by_default(self) -> None:
        attention = head_aligned_attention(768, 12, device="meta")
        dims_in, dims_out = _einsum(attention.query).dims, _einsum(attention.output).dims
        assert dims_in.axes == (12, 1, 64, 1, 64, 12, 1)
        assert dims_out.axes == (64, 1, 12, 1, 12, 64, 1)
        assert sum(parameter.numel() for parameter in attention.parameters()) == 4 * 58_368 + 2 * 64


class TestModule:
    def test_exists_without_memory_and_in_any_precision(self) -> None:
        attention = head_aligned_attention(768, 12, bias=True, device="meta", dtype=torch.bfloat16)
        assert {(parameter.device.type, parameter.dtype) for parameter in attention.parameters()} == {
            ("meta", torch.bfloat16)
        }

    def test_saves_and_loads(self) -> None:
        attention, other = _awake(), head_aligned_attention(WIDTH, NUM_HEADS).double()
        other.load_state_dict(attention.state_dict())
        x_BTD = _inputs(2, 5, WIDTH)
        assert torch.equal(other(x_BTD), attention(x_BTD))

    def test_traces_as_one_graph(self) -> None:
        attention, x_BTD = _awake(), _inputs(2, 5, WIDTH)
        compiled = torch.compile(attention, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x_BTD), attention(x_BTD), atol=TOLERANCE, rtol=TOLERANCE)

    @pytest.mark.parametrize(
        ("width", "num_heads", "message"),
        [
            (0, 1, "width: expected a whole number from 1"),
            (12, 5, "num_heads: expected a divisor of the width 12, got 5"),
            (12, 13, "num_heads: expected a whole number from 1 to 12, got 13"),
            (12, 2.0, "num_heads: expected a whole number from 1 to 12"),
        ],
    )
    def test_refuses_heads_that_do_not_divide_the_width(self, width: int, num_heads: int, message: str) -> None:
        with pytest.raises(FieldError, match=f"^{message}"):
            head_aligned_attention(width, num_heads)
        with pytest.raises(FieldError, match=f"^{message}"):
            Attention(width, num_heads, _dense)

    def test_refuses_an_unknown_case(self) -> None:
        with pytest.raises(FieldError, match=r"^case: expected one of"):
            head_aligned_attention(WIDTH, NUM_HEADS, case_in="(n|n|d|d)")  # type: ignore[arg-type]  # the point of the test


def _awake(
    *,
    causal: bool = True,
    qk_norm: bool = True,
    case_in: HeadCase = "(n|d|d|n)",
    case_out: HeadCase = "(d|n|n|d)",
    rank: int = 1,
) -> Attention:
    """Attention whose output projection and norms have moved away from where they start."""
    torch.manual_seed(0)
    attention = head_aligned_attention(
        WIDTH, NUM_HEADS, causal=causal, qk_norm=qk_norm, case_in=case_in, case_out=case_out, rank=rank
    ).double()
    nn.init.normal_(_einsum(attention.output).B)
    for norm in (attention.query_norm, attention.key_norm):
        if isinstance(norm, nn.LayerNorm):
            nn.init.normal_(norm.weight, mean=1, std=0.2)
    return attention


def _inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _dense(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
    return nn.Linear(d_in, d_out, bias=False)


def _btt(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
    return EinsumLinear.btt(d_in, d_out, bias=False, zero_init=zero_init)


def _einsum(module: nn.Module) -> EinsumLinear:
    assert isinstance(module, EinsumLinear)
    return module


@torch.no_grad()
def _loops(attention: Attention, x_BTD: Tensor) -> Tensor:
    """One sequence, head, and query at a time: softmax over the keys that it sees, then the weighted sum of values."""
    q_W, k_W, v_W, o_W = (
        _einsum(layer).to_dense() for layer in (attention.query, attention.key, attention.value, attention.output)
    )
    out_BTD = torch.zeros_like(x_BTD)
    for sequence, x_TD in enumerate(x_BTD):
        y_TD = torch.zeros_like(x_TD)
        for head in range(NUM_HEADS):
            own = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            queries = [_normed(attention.query_norm, (q_W @ x_D)[own]) for x_D in x_TD]
            keys = [_normed(attention.key_norm, (k_W @ x_D)[own]) for x_D in x_TD]
            values = [(v_W @ x_D)[own] for x_D in x_TD]
            for t, query in enumerate(queries):
                seen = t + 1 if attention.causal else len(queries)
                logits = [math.sqrt(8) / HEAD_WIDTH * float(query @ key) for key in keys[:seen]]
                total = sum(math.exp(logit) for logit in logits)
                for logit, value in zip(logits, values[:seen], strict=True):
                    y_TD[t, own] += math.exp(logit) / total * value
        out_BTD[sequence] = torch.stack([o_W @ y_D for y_D in y_TD])
    return out_BTD


def _normed(norm: nn.Module, x_K: Tensor) -> Tensor:
    if not isinstance(norm, nn.LayerNorm):
        return x_K
    centred_K = x_K - x_K.mean()
    return norm.weight * centred_K / (centred_K.square().mean() + norm.eps).sqrt()
