"""What the benchmark of training steps compares: the other layers compute the same, and are trained by the same steps."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.layers import papers
from benchmarks.proxies.baselines import (
    ONEDNN_ERROR,
    Exchange,
    OneDNNLinear,
    PapersLinear,
    as_it_is,
    as_papers,
    by_onednn,
    exchange,
    onednn_error,
)
from benchmarks.proxies.memory import peak_of, saved_inputs
from benchmarks.proxies.settings import QUICK, RANK_ONE, SEARCHES, Setting, gpt
from benchmarks.proxies.sharing import share
from benchmarks.proxies.steps import Steps, dense, goals, structured
from benchmarks.proxies.tables import table
from einlayers.dims import resolve
from einlayers.families import btt_dims
from einlayers.linear import EinsumLinear
from search.trial import TrialSpec
from tests.workers.specs import MICRO
from workers.evaluate import evaluate
from workers.proxies.registry import proxy_for
from workers.workspace import Workspace

assert_exact = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
SETTING = Setting(name="micro", proxy=MICRO)
STRUCTURES = sorted(set(SETTING.structures) - {"dense"})


@pytest.fixture
def workspace(tmp_path: Path, corpora_dir: Path) -> Workspace:
    return Workspace(cache_dir=tmp_path / "cache", corpora_dir=corpora_dir)


def gradients(model: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """Of a loss that weighs every output differently."""
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return torch.autograd.grad((weights * y).sum(), [x, *parameters])


class TestReference:
    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_gives_the_outputs_of_our_model(self, structure: str) -> None:
        torch.manual_seed(0)
        model = proxy_for(MICRO).build(SETTING.structures[structure], SETTING.width(structure)).double()
        for parameter in model.parameters():  # some of them start at zero, and so would all logits
            nn.init.normal_(parameter, std=0.3)
        tokens_BT = torch.randint(0, 96, (3, MICRO.context))
        expected = model(tokens_BT)
        assert len(exchange(model, as_papers)) == 2 * 6 * MICRO.depth
        assert not any(isinstance(module, EinsumLinear) for module in model.modules())
        assert_exact(model(tokens_BT), expected)

    @pytest.mark.parametrize("theta", ["monarch", "btt", "low-rank", "kronecker", "(1/2|1/4|1/4|1/4|1/2|1/4|0)"])
    def test_sends_the_gradients_of_our_layer(self, theta: str) -> None:
        torch.manual_seed(0)
        layer = EinsumLinear(12, 30, theta, bias=False, dtype=torch.float64)
        reference = PapersLinear(layer)
        x_BTI = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
        ours = gradients(layer, list(layer.parameters()), x_BTI)
        theirs = gradients(reference, list(reference.parameters()), x_BTI)
        assert_exact(theirs[0], ours[0])
        _, as_stored = papers(layer.dims, ours[1], ours[2])
        for found, expected in zip(theirs[1:], as_stored, strict=True):
            assert_exact(found, expected)


class TestOneDNN:
    @pytest.mark.parametrize("bias", [False, True])
    def test_gives_the_outputs_and_gradients_of_a_linear_layer(self, bias: bool) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(12, 7, bias=bias, dtype=torch.float64)
        other = OneDNNLinear(layer)
        x_BTI = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
        assert_exact(other(x_BTI), layer(x_BTI))
        ours = gradients(layer, list(layer.parameters()), x_BTI)
        assert_exact(gradients(other, list(other.parameters()), x_BTI), ours)

    def test_takes_the_weights_over(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
        before = list(model.parameters())
        exchanged = exchange(model, by_onednn)
        assert all(isinstance(model[n], OneDNNLinear) for n in (0, 2))
        assert all(exchanged[old] is old is new for old, new in zip(before, model.parameters(), strict=True))

    def test_leaves_the_precision_of_everything_else(self) -> None:
        layer = OneDNNLinear(nn.Linear(3, 4))
        layer(torch.randn(2, 3)).sum().backward()
        assert torch.get_float32_matmul_precision() == "highest"

    def test_is_measured_against_float64(self) -> None:
        assert 0 < onednn_error([(64, 32)], 16) < 1e4 * ONEDNN_ERROR


class TestTraining:
    @pytest.mark.parametrize("structure", ["dense", RANK_ONE])
    def test_is_that_of_a_trial(self, structure: str, workspace: Workspace) -> None:
        training = SETTING.begin(structure, workspace)
        training.advance()
        theta, width = SETTING.structures[structure], SETTING.width(structure)
        one_step = replace(MICRO, train_flops=1e6)
        assert one_step.num_steps(MICRO.cost(theta, width).macs) == 1
        spec = TrialSpec(theta=theta, proxy=one_step, width=width, seed=0)
        assert training.score() == evaluate(spec, workspace).loss

    @pytest.mark.parametrize(("structure", "other"), [("dense", by_onednn), (RANK_ONE, as_papers)])
    def test_trains_other_layers_alike(self, structure: str, other: Exchange, workspace: Workspace) -> None:
        ours, theirs = (SETTING.begin(structure, workspace, each) for each in (as_it_is, other))
        rates = [[group["lr"] for group in each.optimiser.param_groups] for each in (ours, theirs)]
        assert rates[0] == rates[1]
        for training in (ours, theirs):
            for _ in range(3):
                training.advance()
        assert theirs.score() == pytest.approx(ours.score(), rel=1e-3)

    def test_is_timed_by_whole_steps(self, workspace: Workspace) -> None:
        training = SETTING.begin("dense", workspace)
        found = share(training, 0.05, MICRO.examples_per_step)
        assert training.step >= 1
        assert found.rate > 0
        assert found.gpu_bytes == 0


class TestSettings:
    def test_have_the_rank_that_they_say(self) -> None:
        for width in (128, 256):
            theta = gpt(width, 8).structures["BTT rank 4"]
            sizes = ((width, width), (width, 4 * width), (4 * width, width))
            assert {resolve(theta, *each).rho for each in sizes} == {4}

    def test_of_searches_cost_what_dense_costs(self) -> None:
        shares = [each.flops(structure) for each in (*SEARCHES, *QUICK) for structure in each.structures]
        assert max(abs(share - 1) for share in shares) < 0.15

    def test_of_the_papers_have_one_width(self) -> None:
        setting = gpt(128, 32)
        assert {setting.width(structure) for structure in setting.structures} == {128}
        assert setting.flops("dense") == 1
        assert setting.flops(RANK_ONE) < 0.3


class TestSaved:
    def test_is_the_input_alone_of_a_dense_layer(self) -> None:
        assert saved_inputs(nn.Linear(32, 16), torch.randn(64, 32, requires_grad=True)) == 1

    def test_is_the_input_and_the_intermediate_of_the_papers(self) -> None:
        layer = EinsumLinear.from_dims(btt_dims(64, 64, 2), bias=False)
        assert saved_inputs(PapersLinear(layer), torch.randn(256, 64, requires_grad=True)) == 1 + 2

    def test_is_the_input_alone_where_the_intermediate_is_computed_again(self) -> None:
        layer = EinsumLinear.from_dims(btt_dims(64, 64, 2), bias=False, recompute=True)
        assert saved_inputs(layer, torch.randn(256, 64, requires_grad=True)) == 1


class TestTables:
    steps = Steps(
        setting=SETTING,
        error=4e-7,
        seconds={
            **{(structure, who): 2.0 for structure in STRUCTURES for who in ("ours", "reference")},
            (RANK_ONE, "reference"): 3.0,
            (RANK_ONE, "ours again"): 2.0,
            ("dense", "ours"): 5.0,
            ("dense", "oneDNN"): 4.0,
        },
    )

    def test_print_what_they_are_given(self) -> None:
        assert table(["a", "b", "c"], [["x", "1,000.5", 2], ["y", "-", 3]]) == (
            "| a | b | c |\n| --- | ---: | ---: |\n| x | 1,000.5 | 2 |\n| y | - | 3 |"
        )

    def test_put_the_ratios_of_a_structure_side_by_side(self) -> None:
        (row,) = [line for line in structured([self.steps]).splitlines() if RANK_ONE in line]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:2] == ["micro", RANK_ONE]
        assert cells[-4:] == ["32", "1.50", "2.50", "2.00"]

    def test_put_dense_beside_its_best(self) -> None:
        row = dense([self.steps]).splitlines()[-1]
        assert row.endswith("| 1.25 | 1.25 | 4.0e-07 | 1.00 |")

    def test_say_that_onednn_was_left_out(self) -> None:
        seconds = {key: value for key, value in self.steps.seconds.items() if key != ("dense", "oneDNN")}
        left_out = Steps(setting=SETTING, error=4e-3, seconds=seconds)
        assert dense([left_out]).splitlines()[-1].endswith("| left out | 1.00 | 4.0e-03 | 1.00 |")

    def test_say_which_goals_were_met(self) -> None:
        rows = goals([self.steps], {"micro": 1.6}).splitlines()[2:]
        assert [row.split("|")[-2].strip() for row in rows] == ["no", "yes", "no"]

    def test_leave_out_what_nobody_asked_for(self) -> None:
        assert len(goals([self.steps], {}).splitlines()) == 2

    def test_read_the_peak_of_a_process(self) -> None:
        assert peak_of("VmPeak:\t  9999 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n") == 2
