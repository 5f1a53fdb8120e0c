"""Variants of a proxy's model, built and trained: what they cost on paper is what they are."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from einlayers.linear import EinsumLinear
from einlayers.moe import DenseMoE, EinsumMoE
from einlayers.theta import NAMED, Theta
from search.proxies.registry import ProxySpec
from search.proxies.shapes import GroupThetas, Mixture
from search.structure import structure_of
from search.trial import OutcomeKind, TrialSpec
from search.variant import Variant
from tests.workers.specs import MICRO
from workers.evaluate import evaluate
from workers.models.gpt import Block
from workers.proxies.registry import proxy_for
from workers.transfer import param_groups
from workers.workspace import Workspace

SPARSE = replace(MICRO, mixture=Mixture(num_experts=4, top_k=2))
NUMBERS = pytest.mark.parametrize("numbers", [(1, 1), (3, 1), (3, 3), (16, 2)], ids=str)


def model_of(proxy: ProxySpec, name: str, variant: Variant) -> tuple[nn.Module, ProxySpec, int]:
    """The model of a variant at its width, and what it is costed by."""
    structure = structure_of(NAMED[name], proxy, variant)
    torch.manual_seed(0)
    settings = structure.on(proxy)
    return proxy_for(settings).build(NAMED[name], structure.width), settings, structure.width


def form_of(layer: nn.Module) -> Theta:
    """The structure of a layer."""
    return layer.theta if isinstance(layer, EinsumLinear) else NAMED["dense"]


def rates(settings: ProxySpec, name: str) -> dict[str, float]:
    """The learning rate of every parameter, by its name."""
    torch.manual_seed(0)
    model = proxy_for(settings).build(NAMED[name], settings.width_for(NAMED[name]))
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in param_groups(model, settings) for p in group["params"]}


def macs_of(model: nn.Module, settings: ProxySpec) -> float:
    """Multiplications per example, as torch counts them."""
    tokens = torch.zeros(1, settings.examples_per_step // settings.batch_size, dtype=torch.long)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens)
    return float(counter.get_total_flops()) / 2 / tokens.numel()


class TestGroups:
    @pytest.mark.parametrize("attention", NAMED)
    @pytest.mark.parametrize("name", ["dense", "monarch"])
    def test_are_built_of_their_own_structures(self, name: str, attention: str) -> None:
        variant = Variant(thetas=GroupThetas(attention=NAMED[attention]))
        model, settings, width = model_of(replace(MICRO, weight_norm=True), name, variant)
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        assert blocks
        for block in blocks:
            for layer in ("query", "key", "value", "output"):
                assert form_of(block.attention.get_submodule(layer)) == NAMED[attention]
            for layer in ("up", "down"):
                assert form_of(block.feed_forward.get_submodule(layer)) == NAMED[name]
        assert sum(p.numel() for p in model.parameters()) == settings.cost(NAMED[name], width).params

    def test_cost_what_they_cost_on_paper_in_mixtures_too(self) -> None:
        variant = Variant(num_experts=3, thetas=GroupThetas(attention=NAMED["dense"]))
        model, settings, width = model_of(SPARSE, "btt", variant)
        kinds = {type(module) for module in model.modules() if isinstance(module, (DenseMoE, EinsumMoE))}
        assert kinds == {DenseMoE, EinsumMoE}
        assert sum(p.numel() for p in model.parameters()) == settings.cost(NAMED["btt"], width).params

    def test_have_the_rates_of_their_own_structures(self) -> None:
        proxy = replace(MICRO, width=16, weight_norm=True)
        mixed = Variant(thetas=GroupThetas(attention=NAMED["low-rank"])).on(proxy)
        found, outer, inner = rates(mixed, "monarch"), rates(proxy, "low-rank"), rates(proxy, "monarch")
        assert any(".attention." in key for key in found)
        for key, lr in found.items():
            assert lr == pytest.approx((outer if ".attention." in key else inner)[key])

    @pytest.mark.parametrize(
        ("name", "variant"),
        [
            ("btt", Variant(thetas=GroupThetas(attention=NAMED["dense"]))),
            ("dense", Variant(thetas=GroupThetas(attention=NAMED["kronecker"]))),
            ("monarch", Variant(thetas=GroupThetas(feed_forward=NAMED["btt"]))),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("option", [{}, {"weight_norm": True}], ids=str)
    def test_are_trained(self, workspace: Workspace, name: str, variant: Variant, option: dict[str, Any]) -> None:
        structure = structure_of(NAMED[name], replace(MICRO, **option), variant)
        proxy = replace(structure.on(replace(MICRO, **option)), train_flops=4e7)
        spec = TrialSpec(theta=NAMED[name], proxy=proxy, width=structure.width, seed=0)
        first, again = (evaluate(spec, workspace) for _ in range(2))
        assert first.loss is not None
        assert first.loss == again.loss
        assert first.loss < math.log(96) - 0.5


class TestNumbersOfExperts:
    @NUMBERS
    @pytest.mark.parametrize(("name", "kind"), [("dense", DenseMoE), ("btt", EinsumMoE)])
    def test_are_those_of_the_model(self, name: str, kind: type[nn.Module], numbers: tuple[int, int]) -> None:
        model, settings, width = model_of(SPARSE, name, Variant(num_experts=numbers[0], top_k=numbers[1]))
        mixed = [module for module in model.modules() if isinstance(module, (DenseMoE, EinsumMoE))]
        assert {(type(module), module.num_experts, module.gate.top_k) for module in mixed} == {(kind, *numbers)}
        assert sum(p.numel() for p in model.parameters()) == settings.cost(NAMED[name], width).params

    @NUMBERS
    def test_cost_what_they_cost_on_paper(self, numbers: tuple[int, int]) -> None:
        model, settings, width = model_of(SPARSE, "dense", Variant(num_experts=numbers[0], top_k=numbers[1]))
        assert macs_of(model, settings) == settings.cost(NAMED["dense"], width).macs

    @NUMBERS
    @pytest.mark.parametrize("name", ["dense", "btt"])
    def test_are_trained(self, workspace: Workspace, name: str, numbers: tuple[int, int]) -> None:
        structure = structure_of(NAMED[name], SPARSE, Variant(num_experts=numbers[0], top_k=numbers[1]))
        proxy = replace(structure.on(SPARSE), train_flops=4e7)
        outcome = evaluate(TrialSpec(theta=NAMED[name], proxy=proxy, width=structure.width, seed=0), workspace)
        assert outcome.kind is OutcomeKind.COMPLETED, outcome.reason
        assert outcome.loss is not None
        assert outcome.loss < math.log(96) - 0.5
