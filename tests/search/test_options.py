"""What a proxy may ask of its model: mixtures of experts, heads that are aligned, a depth rule; on paper."""

import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from einlayers.errors import FieldError
from einlayers.taxonomy import layer_cost
from einlayers.theta import AXES, NAMED, Theta
from search.proxies.char_lm import CharLM
from search.proxies.identity import is_shipped, task_digest
from search.proxies.image_vit import ImageViT
from search.proxies.registry import ProxySpec
from search.proxies.regression import Regression
from search.proxies.shapes import GroupThetas, LayerShape, Mixture, ModelCost
from search.studies.baseline import Baseline
from search.studies.calibration import Calibration
from search.studies.scaling import ScalingStudy
from tests import golden

PROXIES: TypeAdapter[ProxySpec] = TypeAdapter(ProxySpec)
MIXTURE = Mixture(num_experts=4, top_k=1)


class TestMixture:
    @pytest.mark.parametrize("facts", golden.mixtures(), ids=lambda facts: f"{facts.d}-{facts.num_experts}")
    def test_costs_what_the_papers_say_it_does(self, facts: golden.Mixture) -> None:
        mixture = Mixture(num_experts=facts.num_experts, top_k=facts.top_k)
        layer = LayerShape(name="attention", group="attention", d_in=facts.d, d_out=facts.d, count=1)
        single = 2 * facts.d * facts.m  # a BTT of rank 1: two factors of d sqrt(d)
        assert mixture.cost(layer, ModelCost(params=single, macs=single)) == ModelCost(
            params=facts.params + facts.gate_params, macs=facts.macs + facts.gate_macs
        )

    def test_of_blocks_has_one_gate_a_block_and_leaves_attention_alone(self) -> None:
        proxy = CharLM(dense_width=32, depth=3)
        mixed = replace(proxy, mixture=Mixture(of="feed_forward", num_experts=5, top_k=2))
        single, several = (each.cost(NAMED["dense"], 32) for each in (proxy, mixed))
        block, gate = 2 * 32 * 128, 5 * 32
        assert several.params - single.params == 3 * (4 * block + gate)
        assert several.macs - single.macs == 3 * (block + gate)

    def test_makes_models_as_expensive_as_the_plain_dense_one(self) -> None:
        proxy = CharLM(dense_width=48, mixture=Mixture(num_experts=8, top_k=2))
        target = proxy.plain.cost(NAMED["dense"], 48).macs
        for theta in NAMED.values():
            assert proxy.cost(theta, proxy.width_for(theta)).macs == pytest.approx(target, rel=0.2)
        assert proxy.width_for(NAMED["dense"]) < 48

    @pytest.mark.parametrize(
        ("field", "value"), [("num_experts", 0), ("top_k", 9), ("top_k", 0), ("balance", -1.0), ("balance", math.inf)]
    )
    def test_refuses_what_it_cannot_be(self, field: str, value: float) -> None:
        with pytest.raises(FieldError, match=f"^{field}: expected"):
            Mixture(**{field: value})  # type: ignore[arg-type]  # the point of the test

    def test_is_json(self) -> None:
        proxy = PROXIES.validate_python({"kind": "regression", "mixture": {"num_experts": 4, "top_k": 1}})
        assert proxy == Regression(mixture=MIXTURE)
        assert PROXIES.validate_json(PROXIES.dump_json(proxy)) == proxy
        for wrong in ({"experts": 4}, {"of": "attention"}, {"num_experts": "4"}, 3):
            with pytest.raises(ValidationError):
                PROXIES.validate_python({"kind": "regression", "mixture": wrong})

    def test_is_not_capped(self) -> None:
        with pytest.raises(FieldError, match=r"^weight_norm: expected false where there is a mixture"):
            Regression(mixture=MIXTURE, weight_norm=True)


class TestAlignedHeads:
    @pytest.mark.parametrize("facts", golden.head_aligned(), ids=lambda facts: str(facts.width))
    def test_cost_what_the_papers_say_they_do(self, facts: golden.HeadAligned) -> None:
        plain = CharLM(dense_width=facts.width, num_heads=facts.num_heads, depth=2)
        aligned = replace(plain, head_aligned_rank=1)
        less = 2 * 4 * (facts.width**2 - facts.params)
        for cost, other in ((aligned.cost(NAMED["dense"], facts.width), plain.cost(NAMED["dense"], facts.width)),):
            assert (other.params - cost.params, other.macs - cost.macs) == (less, less)

    def test_leave_the_structure_to_the_other_layers(self) -> None:
        for proxy in (CharLM(head_aligned_rank=1), ImageViT(head_aligned_rank=1)):
            assert [layer.name for layer in proxy.layers(24)] == ["up", "down"]

    @pytest.mark.parametrize("rank", [0, -1, 5000, True])
    def test_have_a_rank(self, rank: int) -> None:
        with pytest.raises(FieldError, match=r"^head_aligned_rank: expected a whole number from 1"):
            CharLM(head_aligned_rank=rank)


class TestDepthRule:
    def test_scales_branches_by_the_root_of_both_depths(self) -> None:
        assert Regression(depth=12, base_depth=3).branch_scale == pytest.approx(0.5)
        assert Regression(depth=12).branch_scale == 1.0

    def test_tunes_the_rate_at_the_base_depth(self) -> None:
        deep = CharLM(depth=6, base_depth=2)
        assert deep.tuned_on == CharLM(depth=2)
        assert is_shipped(deep)
        assert not is_shipped(CharLM(depth=6))


class TestGroupThetas:
    DENSE, BTT = NAMED["dense"], NAMED["btt"]

    @pytest.mark.parametrize("option", [{}, {"weight_norm": True}, {"mixture": MIXTURE}], ids=str)
    def test_cost_what_the_layers_of_each_group_cost(self, option: dict[str, Any]) -> None:
        proxy = CharLM(depth=3, **option)
        mixed = replace(proxy, thetas=GroupThetas(attention=self.DENSE))
        one, other = (proxy.cost(theta, 32) for theta in (self.DENSE, self.BTT))
        inside = replace(proxy, thetas=GroupThetas(feed_forward=self.DENSE))
        # What one gains by its attention, the other loses.
        for each in ("params", "macs"):
            halves = getattr(mixed.cost(self.BTT, 32), each) + getattr(inside.cost(self.BTT, 32), each)
            assert halves == getattr(one, each) + getattr(other, each)
        assert mixed.cost(self.BTT, 32) not in (one, other)

    def test_are_counted_layer_by_layer(self) -> None:
        mixed = CharLM(depth=3, thetas=GroupThetas(attention=self.DENSE))
        # Four dense matrices of 32 x 32 for as many BTTs.
        saved = layer_cost(self.BTT, 32, 32)
        plain, found = CharLM(depth=3).cost(self.BTT, 32), mixed.cost(self.BTT, 32)
        assert found.params - plain.params == 12 * (32 * 32 - saved.params)
        assert found.macs - plain.macs == 12 * (32 * 32 - saved.macs)

    @pytest.mark.parametrize("group", ["attention", "feed_forward"])
    @pytest.mark.parametrize("name", NAMED)
    def test_make_models_as_expensive_as_the_plain_dense_one(self, name: str, group: str) -> None:
        proxy = CharLM(dense_width=48, thetas=GroupThetas(**{group: NAMED[name]}))
        target = CharLM(dense_width=48).cost(self.DENSE, 48).macs
        gaps = {width: abs(proxy.cost(self.BTT, width).macs - target) for width in range(4, 400, 4)}
        assert proxy.width_for(self.BTT) == min(gaps, key=lambda width: (gaps[width], width))

    def test_are_not_those_of_the_plain_model(self) -> None:
        proxy = CharLM(thetas=GroupThetas(attention=self.BTT))
        assert proxy.plain == proxy.tuned_on == CharLM()
        assert is_shipped(proxy)
        assert task_digest(proxy) != task_digest(CharLM())

    @pytest.mark.parametrize(
        ("proxy", "thetas"),
        [
            (CharLM(), {"attention": BTT, "feed_forward": BTT}),
            (CharLM(head_aligned_rank=1), {"attention": BTT}),
            (CharLM(head_aligned_rank=1), {"feed_forward": BTT}),
            (Regression(), {"attention": BTT}),
            (Regression(), {"feed_forward": BTT}),
        ],
        ids=["both", "aligned", "the rest", "an mlp", "all of an mlp"],
    )
    def test_leave_something_to_the_trial(self, proxy: ProxySpec, thetas: dict[str, Theta]) -> None:
        with pytest.raises(FieldError, match=r"^thetas: expected structures of some, but not all, groups"):
            replace(proxy, thetas=GroupThetas(**thetas))

    def test_are_json(self) -> None:
        exponents = dict(zip(AXES, self.BTT.exponents, strict=True))
        proxy = PROXIES.validate_python({"kind": "char_lm", "thetas": {"attention": exponents}})
        assert proxy == CharLM(thetas=GroupThetas(attention=self.BTT))
        assert PROXIES.validate_json(PROXIES.dump_json(proxy)) == proxy
        assert hash(proxy) == hash(CharLM(thetas=GroupThetas(attention=self.BTT.swapped())))
        for wrong in ({}, {"heads": exponents}, {"attention": {"alpha": 1}}, {"attention": None}, 3):
            with pytest.raises(ValidationError):
                PROXIES.validate_python({"kind": "char_lm", "thetas": wrong})


class TestPlain:
    OPTIONAL = CharLM(mixture=MIXTURE, head_aligned_rank=1, base_depth=1, data_seed=3)

    def test_has_plain_layers_and_is_otherwise_the_same(self) -> None:
        assert self.OPTIONAL.plain == CharLM(base_depth=1, data_seed=3)
        assert CharLM(weight_norm=True).plain == CharLM()

    def test_is_what_rates_and_baselines_are_of(self) -> None:
        proxy = replace(self.OPTIONAL, base_lr=1e-3)
        calibration, baseline = Calibration(name="c", proxy=proxy), Baseline(name="b", proxy=proxy)
        for study in (calibration, baseline):
            assert all(part.proxy.plain == part.proxy for part in study.parts().values())
        assert task_digest(calibration.subject) == task_digest(CharLM(depth=1))
        assert task_digest(baseline.subject) == task_digest(CharLM(base_depth=1))

    def test_is_what_scaling_studies_compare_with(self) -> None:
        study = ScalingStudy(name="s", proxy=self.OPTIONAL)
        dense, structures = study.parts()["dense"], study.parts()["structures"]
        assert dense.proxy == self.OPTIONAL.plain
        assert {run.theta for run in dense.runs} == {NAMED["dense"]}
        assert structures.proxy == self.OPTIONAL
        assert NAMED["dense"] not in {run.theta for run in structures.runs}

    def test_lets_scaling_studies_of_other_structures_share_its_runs(self) -> None:
        others = (Theta.parse("(1|0|0|0|1|0|1/3)"),)
        first, second = ScalingStudy(name="a"), ScalingStudy(name="b", structures=others)
        assert first.parts()["dense"] == second.parts()["dense"]


class TestDataSeed:
    def test_needs_no_rate_of_its_own(self) -> None:
        assert is_shipped(CharLM(data_seed=5))

    @pytest.mark.parametrize("seed", [-1, 2**64, 1.5])
    def test_is_a_seed(self, seed: int) -> None:
        with pytest.raises(FieldError, match=r"^data_seed: expected a whole number"):
            CharLM(data_seed=seed)
