"""Variants of a proxy's model, built and trained: what they cost on paper is what they are."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from einlayers.moe import DenseMoE, EinsumMoE
from einlayers.theta import NAMED
from search.proxies.registry import ProxySpec
from search.proxies.shapes import Mixture
from search.structure import structure_of
from search.trial import OutcomeKind, TrialSpec
from search.variant import Variant
from tests.workers.specs import MICRO
from workers.evaluate import evaluate
from workers.proxies.registry import proxy_for
from workers.workspace import Workspace

SPARSE = replace(MICRO, mixture=Mixture(num_experts=4, top_k=2))
NUMBERS = pytest.mark.parametrize("numbers", [(1, 1), (3, 1), (3, 3), (16, 2)], ids=str)


def model_of(proxy: ProxySpec, name: str, variant: Variant) -> tuple[nn.Module, ProxySpec, int]:
    """The model of a variant at its width, and what it is costed by."""
    structure = structure_of(NAMED[name], proxy, variant)
    torch.manual_seed(0)
    settings = structure.on(proxy)
    return proxy_for(settings).build(NAMED[name], structure.width), settings, structure.width


def macs_of(model: nn.Module, settings: ProxySpec) -> float:
    """Multiplications per example, as torch counts them."""
    tokens = torch.zeros(1, settings.examples_per_step // settings.batch_size, dtype=torch.long)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens)
    return float(counter.get_total_flops()) / 2 / tokens.numel()


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
