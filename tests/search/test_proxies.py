import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from einlayers.dims import MAX_WIDTH, resolve
from einlayers.errors import FieldError
from einlayers.taxonomy import layer_cost, padded_macs
from einlayers.theta import NAMED, Theta
from search.proxies.char_lm import CHAR_VOCABULARY, CharLM
from search.proxies.image_vit import ImageViT
from search.proxies.registry import ProxySpec
from search.proxies.regression import Regression
from search.proxies.shapes import LayerShape, Mixture
from search.studies.structures import RandomStructures
from tests import golden, strategies
from workers.models.linears import linear_factory

TINY = CharLM(dense_width=8, num_heads=2, depth=1, context=8, batch_size=1, train_flops=1e6)

NO_NUMBER = [
    *(pytest.param(value, id=repr(value)) for value in (math.nan, math.inf, -math.inf, 0, -1, True, None, "3")),
    pytest.param(10**400, id="too large for a float"),
]
NO_WHOLE_NUMBER = (math.nan, math.inf, 0, -1, 1.5, 4.0, True, None, "4", 2**64)


class TestSettings:
    @pytest.mark.parametrize("value", NO_WHOLE_NUMBER)
    @pytest.mark.parametrize("field", ["dense_width", "width", "depth", "num_heads", "context", "batch_size"])
    def test_refuse_a_count_that_is_none_and_name_it(self, field: str, value: object) -> None:
        if (field, value) != ("width", None):
            self._refused(field, value, "a whole number from")

    @pytest.mark.parametrize("value", NO_NUMBER)
    @pytest.mark.parametrize("field", ["train_flops", "base_lr"])
    def test_refuse_a_number_that_is_none_and_name_it(self, field: str, value: object) -> None:
        if (field, value) != ("base_lr", None):
            self._refused(field, value, "a number from")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("dense_width", 4100),
            ("width", 4100),
            ("depth", 97),
            ("num_heads", 129),
            ("context", 1),
            ("context", 4097),
            ("batch_size", 65_537),
            ("train_flops", 9e5),
            ("train_flops", 1.1e21),
            ("base_lr", 1e-9),
            ("base_lr", 1e9),
        ],
    )
    def test_refuse_what_nobody_can_train(self, field: str, value: float) -> None:
        self._refused(field, value, "number from")

    @pytest.mark.parametrize("field", ["dense_width", "width"])
    def test_refuse_a_width_that_the_heads_do_not_divide(self, field: str) -> None:
        self._refused(field, 34, "a whole number from 4 to 4096 that is a multiple of 4")

    def test_are_values(self) -> None:
        assert CharLM() == CharLM()
        assert hash(CharLM()) == hash(CharLM())
        assert CharLM(depth=3) != CharLM()

    @staticmethod
    def _refused(field: str, value: object, expected: str) -> None:
        with pytest.raises(FieldError, match=f"^{field}: expected .*{expected}") as caught:
            CharLM(**{field: value})  # type: ignore[arg-type]  # the point of the test
        assert caught.value.field == field
        assert caught.value.got is value


class TestVocabulary:
    def test_is_newline_and_printable_ascii(self) -> None:
        assert len(CHAR_VOCABULARY) == len(set(CHAR_VOCABULARY)) == 96
        assert all(
            character == "\n" or (character.isascii() and character.isprintable()) for character in CHAR_VOCABULARY
        )


class TestLayers:
    def test_are_four_of_attention_and_two_of_feed_forward_a_block(self) -> None:
        assert CharLM(depth=3).layers(32) == (
            LayerShape(name="attention", group="attention", d_in=32, d_out=32, count=12),
            LayerShape(name="up", group="feed_forward", d_in=32, d_out=128, count=3),
            LayerShape(name="down", group="feed_forward", d_in=128, d_out=32, count=3),
        )


class TestCost:
    def test_is_the_golden_one_wherever_rounding_needs_no_padding(self) -> None:
        compared = [model for model in golden.models() if _exact(model)]
        assert len(compared) >= 20
        for model in compared:
            proxy = _proxy(model)
            cost = proxy.cost(_theta(model), model.width)
            assert (cost.params, cost.macs) == (model.params, model.macs), model

    @given(theta=strategies.thetas(), heads=st.integers(1, 4), head_width=st.integers(1, 6), depth=st.integers(1, 3))
    @settings(max_examples=40)
    def test_counts_the_parameters_of_the_model_that_torch_builds(
        self, theta: Theta, heads: int, head_width: int, depth: int
    ) -> None:
        proxy, width = CharLM(num_heads=heads, depth=depth, context=10), heads * head_width
        modules = nn.ModuleList(_modules(proxy, theta, width))
        assert proxy.cost(theta, width).params == sum(parameter.numel() for parameter in modules.parameters())

    def test_counts_attention_without_halving_it_for_causality(self) -> None:
        proxy = CharLM(depth=2, context=64)
        scores_and_values = 2 * proxy.depth * proxy.context * 32
        linears = proxy.depth * (4 * 32 * 32 + 2 * 32 * 128)
        assert proxy.cost(NAMED["dense"], 32).macs == linears + scores_and_values + 96 * 32
        assert proxy.fixed_cost(32).macs == scores_and_values + 96 * 32


class TestPadding:
    @pytest.mark.parametrize("name", NAMED)
    def test_is_none_where_the_axes_multiply_to_the_widths(self, name: str) -> None:
        assert CharLM(num_heads=1).padding(NAMED[name], 16) == 0

    def test_is_the_share_of_what_the_replaceable_layers_compute(self) -> None:
        proxy, theta = CharLM(num_heads=1, depth=3, context=100), Theta.parse("(1/3|1/3|1/3|1/3|1/3|1/3|0)")
        padded = whole = 0
        for d_in, d_out, count in ((37, 37, 4), (37, 148, 1), (148, 37, 1)):
            padded += count * padded_macs(theta, d_in, d_out)
            whole += count * layer_cost(theta, d_in, d_out).macs
        assert 0.05 < padded / whole < 0.95
        assert proxy.padding(theta, 37) == pytest.approx(padded / whole, rel=1e-12)

    def test_counts_every_expert_that_is_computed(self) -> None:
        theta, layers = NAMED["btt"], ((37, 37, 4), (37, 148, 3), (148, 37, 3))
        proxy = CharLM(num_heads=1, mixture=Mixture(of="feed_forward", num_experts=5, top_k=3))
        padded = sum(count * padded_macs(theta, d_in, d_out) for d_in, d_out, count in layers)
        whole = sum(count * layer_cost(theta, d_in, d_out).macs for d_in, d_out, count in layers)
        assert proxy.padding(theta, 37) == pytest.approx(padded / whole, rel=1e-12)
        assert proxy.padding(theta, 37) != pytest.approx(proxy.plain.padding(theta, 37), rel=1e-3)


class TestMatchedWidth:
    @pytest.mark.parametrize("name", NAMED)
    @pytest.mark.parametrize(
        "proxy", [TINY, CharLM(), CharLM(dense_width=12, num_heads=3)], ids=["tiny", "default", "three heads"]
    )
    def test_is_the_best_of_all_widths_for_the_known_designs(self, name: str, proxy: CharLM) -> None:
        assert proxy.width_for(NAMED[name]) == _brute_force(proxy, NAMED[name])

    @given(theta=strategies.thetas())
    @settings(max_examples=40)
    def test_is_the_best_of_all_widths_for_any_structure(self, theta: Theta) -> None:
        assert TINY.width_for(theta) == _brute_force(TINY, theta)

    @pytest.mark.parametrize("proxy", [Regression(), Regression(mixture=Mixture(num_experts=4, top_k=2)), ImageViT()])
    def test_is_the_best_of_all_widths_for_random_structures(self, proxy: ProxySpec) -> None:
        target = proxy.dense_macs
        widths = [width for width in proxy.candidate_widths() if proxy.fixed_cost(width).macs <= 2 * target]
        for theta in RandomStructures(count=12, seed=8):
            gaps = {width: abs(proxy.cost(theta, width).macs - target) for width in widths}
            assert proxy.width_for(theta) == min(gaps, key=lambda width: (gaps[width], width))

    @pytest.mark.parametrize("dense_width", [8, 32, 44, 128, 512])
    def test_is_the_dense_width_for_dense(self, dense_width: int) -> None:
        assert CharLM(dense_width=dense_width).width_for(NAMED["dense"]) == dense_width

    @pytest.mark.parametrize("name", ["low-rank", "kronecker", "monarch", "btt"])
    def test_costs_what_dense_costs_to_a_few_percent_in_a_large_model(self, name: str) -> None:
        proxy = CharLM(dense_width=512)
        dense = proxy.cost(NAMED["dense"], 512).macs
        assert proxy.cost(NAMED[name], proxy.width_for(NAMED[name])).macs == pytest.approx(dense, rel=0.03)

    def test_gives_way_to_a_width_that_is_asked_for(self) -> None:
        proxy = CharLM(width=20)
        assert {proxy.width_for(theta) for theta in NAMED.values()} == {20}


class TestCandidateWidths:
    @pytest.mark.parametrize("num_heads", [1, 4, 12])
    def test_are_all_multiples_of_the_heads_at_first_and_dense_enough_later(self, num_heads: int) -> None:
        widths = list(CharLM(num_heads=num_heads, dense_width=num_heads).candidate_widths())
        assert widths[:128] == [num_heads * i for i in range(1, 129)]
        assert all(width % num_heads == 0 for width in widths)
        steps = [(after - before) / before for before, after in pairwise(widths)]
        assert min(steps) > 0
        assert max(steps[64:]) < 0.02

    def test_end_where_the_widest_layer_does(self) -> None:
        assert 0.98 * MAX_WIDTH < 4 * max(CharLM().candidate_widths()) <= MAX_WIDTH


class TestNumSteps:
    @given(
        macs=st.integers(1, 10**9),
        train_flops=st.floats(1e6, 1e15),
        batch=st.integers(1, 64),
        context=st.integers(2, 512),
    )
    def test_spends_the_budget_to_half_a_step(self, macs: int, train_flops: float, batch: int, context: int) -> None:
        proxy = CharLM(train_flops=train_flops, batch_size=batch, context=context)
        per_step = 6 * macs * batch * context
        num_steps = proxy.num_steps(macs)
        assert num_steps == 1 or abs(num_steps * per_step - train_flops) <= per_step / 2 * (1 + 1e-9)

    def test_takes_at_least_one_step(self) -> None:
        assert CharLM(train_flops=1e6).num_steps(10**12) == 1


def _brute_force(proxy: CharLM, theta: Theta) -> int:
    """The best multiple of the heads, up to where attention and head alone cost twice the dense model."""
    target = proxy.cost(NAMED["dense"], proxy.dense_width).macs
    widths = [w for w in range(proxy.num_heads, 1000, proxy.num_heads) if proxy.fixed_cost(w).macs <= 2 * target]
    assert widths[-1] < 128 * proxy.num_heads
    return min(widths, key=lambda width: (abs(proxy.cost(theta, width).macs - target), width))


def _modules(proxy: CharLM, theta: Theta, width: int) -> Iterator[nn.Module]:
    linear = linear_factory(theta)
    for _ in range(proxy.depth):
        for d_in, d_out in [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]:
            yield linear(d_in, d_out)
        yield from (nn.LayerNorm(size, bias=False) for size in (width, width, width // proxy.num_heads))
        yield nn.LayerNorm(width // proxy.num_heads, bias=False)
    yield nn.LayerNorm(width, bias=False)
    yield nn.Embedding(96, width)
    yield nn.Embedding(proxy.context, width)
    yield nn.Linear(width, 96, bias=False)


def _proxy(model: golden.Model) -> CharLM:
    return CharLM(
        dense_width=model.width, num_heads=model.width // model.d_head, depth=model.depth, context=model.context
    )


def _theta(model: golden.Model) -> Theta:
    return NAMED["dense"] if model.name == "dense" else golden.thetas()[model.name]


def _exact(model: golden.Model) -> bool:
    layers = _proxy(model).layers(model.width)
    exact, rounded = (
        [resolve(_theta(model), layer.d_in, layer.d_out, policy).axes for layer in layers]
        for policy in ("exact", "round")
    )
    return exact == rounded
