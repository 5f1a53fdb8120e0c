"""The coordinates of a trial: what they are, that looking changes nothing, and that they outlast an interruption."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.trial import Coordinates
from tests.workers.specs import micro_trial
from workers.evaluate import evaluate
from workers.probe import Probe
from workers.task import Batch
from workers.workspace import Workspace

BATCH = torch.ones(4, 2), torch.zeros(4, 1)


class Model(nn.Module):
    """Two blocks and a head, whose outputs are known."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(2, 2, bias=False)}) for _ in range(2))
        self.head = nn.Linear(2, 1, bias=False)
        self.other = nn.Linear(2, 2)
        for number, block in enumerate(self.blocks):
            nn.init.constant_(block["up"].weight, number + 1.0)  # type: ignore[index]  # a block is a dict
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (block["up"](x) for block in self.blocks)  # type: ignore[index]  # a block is a dict
        result: Tensor = self.head(first + second + 0 * self.other(x))
        return result


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def train(model: Model, probe: Probe, steps: range) -> None:
    """Add 1 to the first block's outputs, and 0.25 to the head's, over four steps."""
    for step in steps:
        if step == 0:
            probe.begin(BATCH)
        with torch.no_grad():
            model.blocks[0]["up"].weight += 1 / 8  # type: ignore[index]  # a block is a dict
        probe.after(step + 1)


class TestProbe:
    def test_measures_outputs_and_their_moves_by_kind_of_layer(self) -> None:
        model = Model()
        probe = Probe(model, loss, 4)
        train(model, probe, range(6))
        assert probe.found.keys() == {"up", "head"}
        # Outputs 2 and 4; the first of them moves by 4 steps of 2/8.
        assert probe.found["up"].features == pytest.approx(((2**2 + 4**2) / 2) ** 0.5)
        assert probe.found["up"].updates == pytest.approx((1 / 2) ** 0.5)
        assert probe.found["head"] == Coordinates(features=0.0, updates=0.0)

    @pytest.mark.parametrize("interrupted", [2, 5])
    def test_goes_on_from_what_it_had_seen(self, interrupted: int) -> None:
        model = Model()
        whole, first = Probe(model, loss, 4), Probe(model, loss, 4)
        whole.begin(BATCH)
        train(model, first, range(interrupted))
        second = Probe(model, loss, 4)
        second.load_state_dict(first.state_dict())
        train(model, second, range(interrupted, 6))
        again = Model()
        expected = Probe(again, loss, 4)
        train(again, expected, range(6))
        assert second.found == expected.found

    def test_leaves_a_model_without_such_layers_alone(self) -> None:
        model = nn.Linear(2, 1)
        probe = Probe(model, lambda *_: pytest.fail("nobody needs to look"), 4)
        probe.begin(BATCH)
        probe.after(4)
        assert probe.found == {}

    def test_tells_of_what_explodes_in_numbers(self) -> None:
        model = Model()
        probe = Probe(model, loss, 1)
        probe.begin(BATCH)
        nn.init.constant_(model.head.weight, float("inf"))
        probe.after(1)
        assert probe.found["head"].updates == 1e300


class TestTrial:
    def test_has_the_coordinates_of_its_layers(self, workspace: Workspace) -> None:
        outcome = evaluate(micro_trial(), workspace)
        assert outcome.coordinates.keys() == {"query", "key", "value", "output", "up", "down", "head"}
        assert outcome.coordinates["up"].features > 0
        assert outcome.coordinates["head"].features == 0  # it starts as zero
        assert all(each.updates > 0 for each in outcome.coordinates.values())

    def test_has_them_where_it_ends_before_the_probe_looks(self, workspace: Workspace) -> None:
        outcome = evaluate(micro_trial(train_flops=1e6, batch_size=64), workspace)
        assert outcome.coordinates["head"].updates > 0

    def test_counts_the_seconds_of_the_processor(self, workspace: Workspace) -> None:
        outcome = evaluate(micro_trial(), workspace)
        assert outcome.cpu_seconds > 0
        assert replace(outcome, cpu_seconds=0.0).loss == outcome.loss
