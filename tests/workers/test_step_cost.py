"""What a step costs: memory that is counted exactly, and a measurement that changes nothing and outlasts an interruption."""

import weakref
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from einlayers.theta import NAMED
from search.proxies.shapes import Mixture
from search.trial import Outcome, OutcomeKind, StepCost, TrialSpec
from tests.workers.specs import micro_trial
from workers.evaluate import evaluate
from workers.proxies.registry import proxy_for
from workers.step_cost import LiveTensors, step_cost
from workers.training import Training
from workers.transfer import param_groups
from workers.workspace import Workspace

KIB = 1024


def training_of(spec: TrialSpec, workspace: Workspace) -> Training:
    """A training of ``spec`` before its first step."""
    torch.manual_seed(spec.seed)
    proxy = proxy_for(spec.proxy)
    model = proxy.build(spec.theta, spec.width)
    return Training(
        model,
        param_groups(model, spec.proxy),
        proxy.task(spec.seed, workspace, torch.device("cpu")),
        num_steps=10,
        warmup_steps=1,
        balance=0.01 if spec.proxy.mixture else 0.0,
    )


def measured(spec: TrialSpec) -> TrialSpec:
    return replace(spec, measured=True)


def costs_of(outcome: Outcome) -> set[StepCost | None]:
    return {report.step_cost for report in outcome.curve}


class TestLiveTensors:
    def test_counts_a_storage_once_for_as_long_as_it_lives(self) -> None:
        before = torch.zeros(256)  # 1 KiB, made before anybody counts
        with LiveTensors() as tensors:
            first = before + 1
            view = first.view(16, 16).t()
            assert (tensors.live, tensors.peak) == (2 * KIB, 2 * KIB)
            second = view * 2
            assert tensors.live == 3 * KIB
            del first, view
            assert tensors.live == 2 * KIB
            second.add_(1)
            del second
            assert (tensors.live, tensors.peak) == (KIB, 3 * KIB)

    def test_counts_what_autograd_keeps_and_what_it_makes(self) -> None:
        x, W = torch.randn(8, 16), nn.Parameter(torch.randn(16, 16))
        sizes = {"x": 512, "W": 1024, "h": 512, "exp": 512}
        with LiveTensors() as tensors:
            total = (x @ W).exp().sum()
            # exp keeps its result for its backward pass, and the product nothing but what went in.
            assert tensors.live == sizes["x"] + sizes["W"] + sizes["exp"] + 4
            total.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            assert W.grad is not None
            del total
            assert tensors.live == sizes["x"] + 2 * sizes["W"]

    def test_counts_nothing_of_what_came_after(self) -> None:
        with LiveTensors() as tensors:
            torch.zeros(10)
        torch.zeros(1000)
        assert (tensors.live, tensors.peak) == (0, 40)


class TestStepCost:
    @pytest.mark.parametrize("options", [{}, {"mixture": Mixture(num_experts=2)}, {"weight_norm": True}], ids=str)
    @pytest.mark.parametrize("name", ["dense", "btt", "low-rank"])
    def test_is_the_same_memory_every_time(self, name: str, options: dict[str, Any], workspace: Workspace) -> None:
        spec = micro_trial(name, **options)
        costs = [step_cost(training_of(spec, workspace)) for _ in range(3)]
        assert len({cost.peak_memory for cost in costs}) == 1
        assert all(cost.latency > 0 for cost in costs)

    @pytest.mark.parametrize("name", NAMED)
    def test_holds_weights_averages_gradients_and_the_state_of_adam(self, name: str, workspace: Workspace) -> None:
        training = training_of(micro_trial(name), workspace)
        kept = 5 * sum(parameter.nbytes for parameter in training.model.parameters())
        assert step_cost(training).peak_memory > kept

    def test_grows_by_what_examples_keep(self, workspace: Workspace) -> None:
        peaks = [step_cost(training_of(micro_trial(batch_size=size), workspace)).peak_memory for size in (4, 8, 16, 32)]
        steps = [(after - before) / size for before, after, size in zip(peaks, peaks[1:], (4, 8, 16), strict=False)]
        assert peaks == sorted(peaks)
        # Linear in the number of examples, as activations are, each of which keeps at least its logits.
        assert steps == pytest.approx([steps[0]] * 3, rel=0.05)
        assert steps[0] > 16 * 96 * 4

    def test_grows_with_the_width(self, workspace: Workspace) -> None:
        peaks = [step_cost(training_of(micro_trial(dense_width=width), workspace)).peak_memory for width in (8, 16, 32)]
        assert peaks == sorted(set(peaks))

    def test_leaves_nothing_of_what_was_trained(self, workspace: Workspace) -> None:
        training = training_of(micro_trial("btt"), workspace)
        model = weakref.ref(training.model)
        step_cost(training)
        del training
        assert model() is None


class TestTrial:
    @pytest.fixture
    def durable(self, workspace: Workspace, tmp_path: Path) -> Workspace:
        return replace(workspace, checkpoints_dir=tmp_path / "checkpoints")

    def test_says_it_with_every_point_of_its_curve(self, workspace: Workspace) -> None:
        spec = micro_trial("btt")
        outcome = evaluate(measured(spec), workspace)
        (cost,) = costs_of(outcome)
        assert cost is not None
        assert cost.peak_memory == step_cost(training_of(spec, workspace)).peak_memory

    @pytest.mark.parametrize("options", [{}, {"mixture": Mixture(num_experts=2)}], ids=str)
    def test_is_the_same_to_the_last_bit_as_without(self, options: dict[str, Any], workspace: Workspace) -> None:
        spec = micro_trial("btt", **options)
        without, outcome = evaluate(spec, workspace), evaluate(measured(spec), workspace)
        assert (outcome.loss, outcome.coordinates) == (without.loss, without.coordinates)
        assert tuple(replace(report, step_cost=None) for report in outcome.curve) == without.curve

    def test_measures_nothing_that_was_not_asked_for(self, workspace: Workspace) -> None:
        assert costs_of(evaluate(micro_trial(), workspace)) == {None}

    def test_keeps_what_was_measured_where_it_goes_on(self, durable: Workspace) -> None:
        spec, asked = measured(micro_trial()), count()
        first = evaluate(spec, durable, key="5f0c2ab91d3e-7-1", should_checkpoint=lambda: next(asked) >= 10)
        assert (first.kind, len(first.curve) > 0) == (OutcomeKind.CHECKPOINTED, True)
        second = evaluate(spec, durable, key="5f0c2ab91d3e-7-2")
        assert second.resumed_step == 10
        # To the last bit of its latency, which no second measurement would have.
        assert costs_of(second) == costs_of(first)
        assert len(costs_of(second)) == 1

    def test_measures_again_where_nothing_was_reported_yet(self, durable: Workspace) -> None:
        spec = measured(micro_trial())
        evaluate(spec, durable, key="5f0c2ab91d3e-7-1", should_checkpoint=lambda: True)
        (cost,) = costs_of(evaluate(spec, durable, key="5f0c2ab91d3e-7-2"))
        assert cost is not None

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    def test_counts_on_a_gpu_what_its_allocator_gave(self, workspace: Workspace) -> None:
        spec = micro_trial("btt", batch_size=64)
        peaks = list[int]()
        for _ in range(3):
            (cost,) = costs_of(evaluate(measured(spec), workspace, device="cuda"))
            assert cost is not None
            assert cost.latency > 0
            peaks.append(cost.peak_memory)
        # The allocator rounds up, and libraries work in memory of their own.
        counted = step_cost(training_of(spec, workspace)).peak_memory
        assert 0.5 * counted < peaks[0] < 2 * counted + 2**22
        assert peaks[1] == pytest.approx(peaks[0], rel=0.01)
        assert peaks[2] == peaks[1]
