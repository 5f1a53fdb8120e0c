"""What every proxy keeps: subclass, and give its settings and its workspace."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from einlayers.linear import EinsumLinear
from einlayers.theta import NAMED
from search.proxies.registry import ProxySpec
from search.proxies.shapes import GroupThetas, Mixture
from workers.proxies.registry import proxy_for
from workers.task import Batch, Task
from workers.workspace import Workspace

FLOPS_PER_MAC = 2
BEYOND_MULTIPLYING_OUT = 1152
"""A width at which every layer is contracted factor by factor, so that what runs is what is counted."""

STRUCTURES = pytest.mark.parametrize("name", NAMED)

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "weight norm": {"weight_norm": True},
    "mixtures of layers": {"mixture": Mixture(num_experts=4, top_k=2)},
    "mixtures of blocks": {"mixture": Mixture(of="feed_forward", num_experts=3, top_k=1)},
    "depth rule": {"base_depth": 4},
    "aligned heads": {"head_aligned_rank": 2},
    "aligned heads and weight norm": {"head_aligned_rank": 1, "weight_norm": True},
    "dense attention": {"thetas": GroupThetas(attention=NAMED["dense"])},
    "other attention and weight norm": {"thetas": GroupThetas(attention=NAMED["low-rank"]), "weight_norm": True},
    "other blocks and mixtures": {
        "thetas": GroupThetas(feed_forward=NAMED["monarch"]),
        "mixture": Mixture(of="feed_forward", num_experts=2, top_k=1),
    },
    "aligned heads and mixtures": {"head_aligned_rank": 1, "mixture": Mixture(num_experts=2, top_k=1)},
}
"""What a model's layers may be asked to be."""

CASES = pytest.mark.parametrize(
    ("name", "option"),
    [(name, "plain") for name in NAMED]
    + [("btt", option) for option in [*OPTIONS][1:]]
    + [("dense", "mixtures of layers"), ("dense", "other attention and weight norm")],
)


class ProxyContract:
    """A model whose cost is known exactly, which knows nothing at first, and a task that follows from its seed."""

    @pytest.fixture
    def settings(self) -> ProxySpec:
        raise NotImplementedError("give small settings of the proxy that is to keep the contract")

    @pytest.fixture
    def optional(self, settings: ProxySpec, option: str) -> ProxySpec:
        """The settings with an option, or as they are where the model has no such thing."""
        known = {field.name for field in fields(settings)} - ({"thetas"} if len(settings.groups) == 1 else set())
        return replace(settings, **{key: value for key, value in OPTIONS[option].items() if key in known})

    @CASES
    @pytest.mark.parametrize("width", [24, 576])
    def test_counts_the_parameters_that_are_there(self, optional: ProxySpec, name: str, width: int) -> None:
        settings = optional
        with torch.device("meta"):
            model = proxy_for(settings).build(NAMED[name], width)
        assert sum(p.numel() for p in model.parameters()) == settings.cost(NAMED[name], width).params

    @CASES
    def test_counts_the_multiplications_that_torch_counts(
        self, optional: ProxySpec, workspace: Workspace, name: str
    ) -> None:
        settings = optional
        # Which experts work depends on the numbers; all else is counted without any.
        device = "cpu" if settings.mixture else "meta"
        with torch.device(device):
            model = proxy_for(settings).build(NAMED[name], BEYOND_MULTIPLYING_OUT)
        # Few examples, for which no structure is worth multiplying out, which is faster and more multiplications.
        inputs = next(_task(settings, workspace).batches)[0][:1].to(device)
        # The counter knows attention by its two products; causality halves nothing there, as in the papers.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(inputs)
        examples = settings.examples_per_step // settings.batch_size
        macs = settings.cost(NAMED[name], BEYOND_MULTIPLYING_OUT).macs
        assert counter.get_total_flops() / FLOPS_PER_MAC / examples == macs

    @STRUCTURES
    def test_makes_the_layers_that_it_names_of_the_structure(self, settings: ProxySpec, name: str) -> None:
        model = proxy_for(settings).build(NAMED[name], 24)
        shapes = sorted((layer.d_in, layer.d_out) for layer in settings.layers(24) for _ in range(layer.count))
        structured = [layer for layer in model.modules() if isinstance(layer, EinsumLinear)]
        dense = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        if name == "dense":
            assert not structured
            found = [(layer.in_features, layer.out_features) for layer in dense]
            assert not Counter(shapes) - Counter(found)
        else:
            assert {layer.theta for layer in structured} == {NAMED[name]}
            assert sorted((layer.dims.d_in, layer.dims.d_out) for layer in structured) == shapes
            plain = proxy_for(settings).build(NAMED["dense"], 24)
            assert len(dense) + len(shapes) == sum(isinstance(layer, nn.Linear) for layer in plain.modules())

    @CASES
    def test_knows_nothing_at_first_and_something_later(
        self, optional: ProxySpec, workspace: Workspace, name: str
    ) -> None:
        settings = optional
        torch.manual_seed(0)
        model, task = proxy_for(settings).build(NAMED[name], 24), _task(settings, workspace)
        with torch.no_grad():
            assert task.held_out_loss(model) == pytest.approx(task.uninformed_loss, rel=0.1)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for batch in islice(task.batches, 60):
            optimiser.zero_grad()
            task.loss(model, batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            optimiser.step()
        with torch.no_grad():
            assert task.held_out_loss(model) < 0.95 * task.uninformed_loss

    def test_draws_batches_of_the_size_asked_for_from_the_seed_alone(
        self, settings: ProxySpec, workspace: Workspace
    ) -> None:
        first, again, other = (_batches(_task(settings, workspace, seed)) for seed in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        assert {len(tensor) for tensor in first} == {settings.batch_size}

    def test_goes_on_where_its_generator_was_saved(self, settings: ProxySpec, workspace: Workspace) -> None:
        task = _task(settings, workspace)
        next(task.batches)
        saved = task.generator.bit_generator.state
        following = _batches(task)
        resumed = _task(settings, workspace, seed=7)
        resumed.generator.bit_generator.state = saved
        assert all(torch.equal(a, b) for a, b in zip(following, _batches(resumed), strict=True))

    def test_scores_every_seed_on_the_same_examples(self, settings: ProxySpec, workspace: Workspace) -> None:
        torch.manual_seed(0)
        model = proxy_for(settings).build(NAMED["dense"], 24)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            losses = {_task(settings, workspace, seed).held_out_loss(model) for seed in (0, 1)}
        assert len(losses) == 1


def _task(settings: ProxySpec, workspace: Workspace, seed: int = 0) -> Task:
    return proxy_for(settings).task(seed, workspace, torch.device("cpu"))


def _batches(task: Task) -> list[torch.Tensor]:
    batches: list[Batch] = list(islice(task.batches, 3))
    return [tensor for batch in batches for tensor in batch]
