"""What a proxy may ask of its model, in training: mixtures of experts, aligned heads, a depth rule, a seed of the data."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from einlayers.attention import Attention
from einlayers.linear import EinsumLinear
from einlayers.moe import DenseMoE, EinsumMoE, FeedForwardMoE
from einlayers.routing import Router, auxiliary_loss
from einlayers.theta import NAMED
from search.proxies.registry import ProxySpec
from search.proxies.regression import Regression
from search.proxies.shapes import Mixture
from search.trial import OutcomeKind
from tests.workers.specs import MICRO, micro_trial
from workers.evaluate import evaluate
from workers.models.mlp import MLP, Block
from workers.proxies.registry import proxy_for
from workers.training import Training
from workers.transfer import param_groups
from workers.workspace import Workspace

EXPERTS = Mixture(num_experts=4, top_k=2)
BLOCKS = Mixture(of="feed_forward", num_experts=4, top_k=1)


def build(settings: ProxySpec, name: str = "monarch", width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return proxy_for(settings).build(NAMED[name], width)


def rates(settings: ProxySpec, name: str, width: int) -> dict[str, float]:
    model = build(settings, name, width)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in param_groups(model, settings) for p in group["params"]}


def loss_of(workspace: Workspace, *, seed: int = 0, **settings: Any) -> float:
    outcome = evaluate(micro_trial(seed=seed, **settings), workspace)
    assert outcome.kind is OutcomeKind.COMPLETED, outcome.reason
    assert outcome.loss is not None
    return outcome.loss


class TestMixtures:
    @pytest.mark.parametrize(("name", "kind"), [("dense", DenseMoE), ("monarch", EinsumMoE)])
    def test_take_the_place_of_every_layer(self, name: str, kind: type[nn.Module]) -> None:
        model = build(replace(MICRO, depth=2, mixture=EXPERTS), name)
        made = [module for module in model.modules() if isinstance(module, (EinsumMoE, DenseMoE))]
        assert (len(made), {type(module) for module in made}) == (2 * 6, {kind})
        assert {(module.num_experts, module.gate.top_k) for module in made} == {(4, 2)}

    @pytest.mark.parametrize("name", ["dense", "monarch"])
    def test_take_the_place_of_every_feed_forward_block(self, name: str) -> None:
        model = build(replace(MICRO, depth=2, mixture=BLOCKS), name)
        blocks = [module for module in model.modules() if isinstance(module, FeedForwardMoE)]
        assert [(block.up.num_experts, block.gate.top_k) for block in blocks] == [(4, 1)] * 2
        attention = [module for module in model.modules() if isinstance(module, Attention)]
        single = nn.Linear if name == "dense" else EinsumLinear
        assert all(isinstance(each.query, single) for each in attention)

    @pytest.mark.parametrize("mixture", [EXPERTS, BLOCKS], ids=["layers", "blocks"])
    @pytest.mark.parametrize("name", ["dense", "btt"])
    def test_are_trained_to_a_loss_from_the_seed_alone(self, workspace: Workspace, mixture: Mixture, name: str) -> None:
        spec = micro_trial(name, mixture=mixture, train_flops=4e7)
        first, again = (evaluate(spec, workspace) for _ in range(2))
        assert first.loss == again.loss
        assert first.loss is not None
        assert first.loss < math.log(96) - 0.5
        kinds = {"query", "key", "value", "output", "head"} | (
            {"feed_forward"} if mixture is BLOCKS else {"up", "down"}
        )
        assert set(first.coordinates) == kinds

    def test_learn_to_use_their_experts_evenly_as_far_as_that_is_asked_for(self, workspace: Workspace) -> None:
        indifferent, balanced = (self._unevenness(balance, workspace) for balance in (0.0, 10.0))
        assert balanced < indifferent / 2

    @staticmethod
    def _unevenness(balance: float, workspace: Workspace) -> float:
        """How far the auxiliary loss is from its minimum, after training that began with some experts preferred."""
        settings = replace(MICRO, mixture=replace(EXPERTS, top_k=1))
        model = build(settings)
        for gate in (module for module in model.modules() if isinstance(module, Router)):
            with torch.no_grad():
                nn.init.normal_(gate.weight)
        task = proxy_for(settings).task(0, workspace, torch.device("cpu"))
        groups = [{"params": list(model.parameters()), "lr": 1e-2}]
        training = Training(model, groups, task, num_steps=40, warmup_steps=1, balance=balance)
        for _ in range(40):
            training.advance()
        task.loss(model, next(task.batches))
        even = 1 + 0.1 * math.log(4) ** 2
        return auxiliary_loss(model).item() - even

    def test_have_the_rates_of_their_experts_and_of_a_layer_for_their_gates(self) -> None:
        settings = replace(MICRO, base_width=32, mixture=EXPERTS)
        single, mixed = rates(replace(settings, mixture=None), "monarch", 64), rates(settings, "monarch", 64)
        for key, lr in single.items():
            assert mixed[key] == pytest.approx(lr)
        gates = {key: lr for key, lr in mixed.items() if key.endswith("gate.weight")}
        assert len(gates) == 6
        assert list(gates.values()) == pytest.approx([5e-3 * 32 / 64] * 6)


class TestAlignedHeads:
    def test_have_the_blocks_of_their_attention(self) -> None:
        model = build(replace(MICRO, head_aligned_rank=2), "dense")
        attention = next(module for module in model.modules() if isinstance(module, Attention))
        for layer, axes in (("query", (2, 1, 8, 1, 8, 2, 2)), ("output", (8, 1, 2, 1, 2, 8, 2))):
            made = getattr(attention, layer)
            assert isinstance(made, EinsumLinear)
            assert made.dims.axes == axes

    def test_are_trained(self, workspace: Workspace) -> None:
        assert loss_of(workspace, head_aligned_rank=1, train_flops=1e8) < math.log(96) - 1


class TestDepthRule:
    def test_scales_every_branch(self) -> None:
        settings = Regression(depth=4, base_depth=1, base_lr=1e-3)
        model = build(settings, "dense")
        assert isinstance(model, MLP)
        block = model.blocks[0]
        assert isinstance(block, Block)
        nn.init.normal_(block.feed_forward.get_parameter("down.weight"))
        x_BD = torch.randn(3, 16)
        update_BD = block(x_BD) - x_BD
        torch.testing.assert_close(update_BD, block.feed_forward(block.norm(x_BD)) / 2)

    def test_scales_the_rates_within_the_branches_alone(self) -> None:
        settings = Regression(depth=4, base_lr=1e-3)
        usual, scaled = (rates(each, "btt", 16) for each in (settings, replace(settings, base_depth=1)))
        for key, lr in usual.items():
            assert scaled[key] == pytest.approx(lr / 2 if key.startswith("blocks.") else lr)

    def test_changes_nothing_at_the_depth_that_the_rate_was_tuned_at(self, workspace: Workspace) -> None:
        assert loss_of(workspace, depth=2, base_depth=2) == loss_of(workspace, depth=2)


class TestSeeds:
    def test_of_the_data_is_that_of_the_trial_unless_another_is_given(self, workspace: Workspace) -> None:
        assert loss_of(workspace, seed=3, data_seed=3) == loss_of(workspace, seed=3)

    def test_of_initialisation_and_of_the_data_are_apart(self, workspace: Workspace) -> None:
        losses = {loss_of(workspace, seed=seed, data_seed=data) for seed in (0, 1) for data in (0, 1)}
        assert len(losses) == 4
