"""The GPT against a second one in numpy, against torch's counter of FLOPs, and against what the papers say of it."""

# B batch, T tokens, D width, H heads, K width per head, V vocabulary

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.attention import Attention, LinearFactory
from einlayers.linear import EinsumLinear
from einlayers.theta import NAMED, Theta
from search.proxies.char_lm import CharLM
from workers.models.gpt import GPT, Block
from workers.models.layers import FeedForward, Layers
from workers.models.linears import dense_linear, linear_factory
from workers.proxies.char_lm import CharLMProxy

TOLERANCE = 1e-10
"""Between float64 arithmetic in torch's order and in that of plain loops."""

Array = npt.NDArray[np.float64]


def small_gpt(linear: LinearFactory = dense_linear, *, depth: int = 2) -> GPT:
    """A GPT in float64 whose weights, gains and head are all drawn: as it starts, it computes nothing but zeros."""
    torch.manual_seed(0)
    layers = Layers(linear=linear)
    model = GPT(vocabulary=11, context=9, width=12, depth=depth, num_heads=3, layers=layers).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def tokens_of(*shape: int, seed: int = 0, vocabulary: int = 11) -> Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


class TestForward:
    @pytest.mark.parametrize("length", [1, 5, 9])
    def test_computes_what_a_second_implementation_computes(self, length: int) -> None:
        model, tokens_BT = small_gpt(), tokens_of(2, length)
        np.testing.assert_allclose(
            model(tokens_BT).detach().numpy(), numpy_gpt(model, tokens_BT.numpy()), atol=TOLERANCE, rtol=TOLERANCE
        )

    @pytest.mark.parametrize("name", ["dense", "btt"])
    def test_tells_the_past_nothing_of_the_future(self, name: str) -> None:
        model, tokens_BT = small_gpt(linear_factory(NAMED[name])), tokens_of(2, 9)
        before_BTV = model(tokens_BT)
        for changed in range(9):
            other_BT = tokens_BT.clone()
            other_BT[:, changed] = (other_BT[:, changed] + 1) % 11
            after_BTV = model(other_BT)
            torch.testing.assert_close(after_BTV[:, :changed], before_BTV[:, :changed], atol=TOLERANCE, rtol=TOLERANCE)
            # And the past does reach every later position.
            assert (after_BTV - before_BTV)[:, changed:].abs().amax(-1).min() > 1e-6

    def test_knows_where_a_token_stands(self) -> None:
        model = small_gpt()
        first_TV, second_TV = model(torch.tensor([[1, 2, 2], [2, 1, 2]]))
        assert not torch.allclose(first_TV[2], second_TV[2])


class TestStart:
    @pytest.mark.parametrize("name", NAMED)
    def test_knows_nothing_and_says_so(self, name: str) -> None:
        torch.manual_seed(0)
        proxy = CharLM()
        model = CharLMProxy(CharLM()).build(NAMED[name], 24)
        tokens_BT = tokens_of(2, proxy.context + 1, vocabulary=96)
        logits_BTV = model(tokens_BT[:, :-1])
        assert logits_BTV.shape == (2, proxy.context, 96)
        assert torch.count_nonzero(logits_BTV) == 0
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
        assert loss.item() == pytest.approx(math.log(96), rel=1e-6)

    @pytest.mark.parametrize("name", NAMED)
    def test_lets_the_embeddings_through_unchanged(self, name: str) -> None:
        torch.manual_seed(0)
        model = CharLMProxy(CharLM()).build(NAMED[name], 24)
        assert isinstance(model, GPT)
        tokens_BT = tokens_of(2, 64, vocabulary=96)
        embedded_BTD = model.token_embedding(tokens_BT) + model.position_embedding(torch.arange(64))
        assert torch.equal(features(model, tokens_BT), embedded_BTD)

    def test_gives_every_width_the_spectral_scale(self) -> None:
        torch.manual_seed(0)
        for d_in, d_out in ((64, 64), (64, 256), (256, 64)):
            weight_OI = dense_linear(d_in, d_out).weight
            assert weight_OI.std().item() == pytest.approx(math.sqrt(min(d_in, d_out)) / d_in, rel=0.05)
            assert torch.count_nonzero(dense_linear(d_in, d_out, zero_init=True).weight) == 0

    @pytest.mark.parametrize("width", [16, 256])
    def test_gives_embeddings_one_scale_at_every_width(self, width: int) -> None:
        torch.manual_seed(0)
        model = GPT(vocabulary=96, context=64, width=width, depth=1, num_heads=4, layers=Layers())
        for table in (model.token_embedding, model.position_embedding):
            assert table.weight.std().item() == pytest.approx(0.02, rel=0.1)


class TestLinears:
    @dataclass
    class Recorder:
        """A factory that keeps what it was asked for and what it made."""

        asked: Counter[tuple[int, int, bool]]
        made: list[nn.Module]

        def __call__(self, d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
            self.asked[d_in, d_out, zero_init] += 1
            self.made.append(dense_linear(d_in, d_out, zero_init=zero_init))
            return self.made[-1]

    @pytest.mark.parametrize("depth", [1, 3])
    def test_all_but_the_head_are_made_by_the_factory(self, depth: int) -> None:
        factory = self.Recorder(Counter(), [])
        model = GPT(vocabulary=11, context=9, width=12, depth=depth, num_heads=3, layers=Layers(linear=factory))
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        assert {id(linear) for linear in linears} - {id(made) for made in factory.made} == {id(model.head)}
        assert factory.asked == {
            (12, 12, False): 3 * depth,  # queries, keys, values
            (12, 12, True): depth,  # attention's output, the last layer of its branch
            (12, 48, False): depth,
            (48, 12, True): depth,
        }

    def test_have_no_bias_anywhere(self) -> None:
        for name in NAMED:
            model = CharLMProxy(CharLM()).build(NAMED[name], 24)
            assert not [key for key, _ in model.named_parameters() if "bias" in key]

    def test_are_plain_matrices_where_the_structure_is_dense(self) -> None:
        # The second is dense at this width alone: its small axes come to 1.
        for theta in (NAMED["dense"], Theta.of((0.05, 0.95, 0, 0, 0.98, 0.02, 0))):
            model = CharLMProxy(CharLM()).build(theta, 24)
            assert not [module for module in model.modules() if isinstance(module, EinsumLinear)]


class TestAttention:
    @pytest.mark.parametrize(("width", "num_heads"), [(12, 3), (16, 1), (32, 2)])
    def test_is_a_softmax_of_scaled_products_of_normalised_queries_and_keys(self, width: int, num_heads: int) -> None:
        attention, x_BTD = attention_of(width, num_heads), inputs_of(2, 6, width)
        np.testing.assert_allclose(
            attention(x_BTD).detach().numpy(), loops(attention, x_BTD.numpy()), atol=TOLERANCE, rtol=TOLERANCE
        )

    @pytest.mark.parametrize(("width", "num_heads"), [(16, 2), (64, 2), (64, 8)])
    def test_is_scaled_by_mup_and_as_usual_at_8_features_per_head(self, width: int, num_heads: int) -> None:
        head_width = width // num_heads
        scale = attention_of(width, num_heads).scale
        assert scale == pytest.approx(math.sqrt(8) / head_width)
        assert (scale == pytest.approx(1 / math.sqrt(head_width))) is (head_width == 8)

    @pytest.mark.parametrize("which", ["query", "key"])
    def test_normalises_the_queries_and_keys_of_each_head_on_its_own(self, which: str) -> None:
        attention, x_BTD = attention_of(12, 3), inputs_of(2, 6, 12)
        before_BTD = attention(x_BTD)
        with torch.no_grad():
            # Each head's rows by a factor of its own: only a norm per head undoes that, up to its epsilon.
            getattr(attention, which).weight.mul_(torch.tensor([3.0, 50.0, 700.0]).repeat_interleave(4)[:, None])
        torch.testing.assert_close(attention(x_BTD), before_BTD, atol=1e-3, rtol=1e-3)

    def test_shares_the_gains_of_its_norms_among_the_heads(self) -> None:
        attention = attention_of(12, 3)
        assert attention.query_norm.weight.shape == attention.key_norm.weight.shape == (4,)


def attention_of(width: int, num_heads: int) -> Attention:
    torch.manual_seed(0)
    attention = Attention(width, num_heads, dense_linear).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention


def inputs_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def features(model: GPT, tokens_BT: Tensor) -> Tensor:
    """What the last LayerNorm is given."""
    seen: list[Tensor] = []
    handle = model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(tokens_BT)
    handle.remove()
    return seen[0]


def matrix(layer: nn.Module) -> Array:
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach().numpy().astype(np.float64)


def layer_norm(x_K: Array, norm: nn.Module) -> Array:
    """(x - mean) / sqrt(variance + 1e-5), times the gain."""
    assert isinstance(norm, nn.LayerNorm)
    centred_K = x_K - sum(x_K) / len(x_K)
    variance = sum(centred_K**2) / len(x_K)
    normalised_K: Array = centred_K / math.sqrt(variance + 1e-5) * norm.weight.detach().numpy()
    return normalised_K


def loops(attention: Attention, x_BTD: Array) -> Array:
    """Attention, one pair of positions of one head of one text at a time."""
    B, T, D = x_BTD.shape
    K = D // attention.num_heads
    y_BTD = np.zeros_like(x_BTD)
    for b in range(B):
        for first in range(0, D, K):
            head = slice(first, first + K)
            q_TK, k_TK, v_TK = (
                [(matrix(layer) @ x_BTD[b, t])[head] for t in range(T)]
                for layer in (attention.query, attention.key, attention.value)
            )
            q_TK = [layer_norm(q_K, attention.query_norm) for q_K in q_TK]
            k_TK = [layer_norm(k_K, attention.key_norm) for k_K in k_TK]
            for t in range(T):
                weights = [math.exp(math.sqrt(8) / K * float(q_TK[t] @ k_TK[s])) for s in range(t + 1)]
                for s in range(t + 1):
                    y_BTD[b, t, head] += weights[s] / sum(weights) * v_TK[s]
    mixed_BTD: Array = y_BTD @ matrix(attention.output).T
    return mixed_BTD


def numpy_gpt(model: GPT, tokens_BT: npt.NDArray[np.int64]) -> Array:
    """The whole model: pre-norm residual branches, exact GELU, a last norm, the head."""
    tokens_VD, positions_TD = (
        table.weight.detach().numpy() for table in (model.token_embedding, model.position_embedding)
    )
    x_BTD: Array = tokens_VD[tokens_BT] + positions_TD[: tokens_BT.shape[1]]
    for block in model.blocks:
        assert isinstance(block, Block)
        x_BTD = x_BTD + loops(block.attention, normed(x_BTD, block.attention_norm))
        assert isinstance(block.feed_forward, FeedForward)
        hidden_BTF = normed(x_BTD, block.feed_forward_norm) @ matrix(block.feed_forward.up).T
        active_BTF = hidden_BTF * (1 + np.vectorize(math.erf)(hidden_BTF / math.sqrt(2))) / 2
        x_BTD = x_BTD + active_BTF @ matrix(block.feed_forward.down).T
    logits_BTV: Array = normed(x_BTD, model.norm) @ matrix(model.head).T
    return logits_BTV


def normed(x_BTD: Array, norm: nn.Module) -> Array:
    return np.array([[layer_norm(x_D, norm) for x_D in x_TD] for x_TD in x_BTD])
