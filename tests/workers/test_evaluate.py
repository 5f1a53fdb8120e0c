"""One trial from its spec to its outcome."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from einlayers.theta import NAMED
from search.proxies.char_lm import CharLM, FileCorpus
from search.trial import Outcome, OutcomeKind, Report, TrialSpec
from tests.workers.specs import micro_trial
from workers.evaluate import evaluate
from workers.proxies.registry import proxy_for
from workers.training import curve_steps
from workers.transfer import param_groups
from workers.workspace import Workspace

KNOWS_NOTHING = math.log(96)

SECOND = 1e9
"""Training FLOPs that take well under a second."""


@pytest.fixture(scope="session")
def learnt(library_workspace: Workspace) -> Callable[[str, int], Outcome]:
    """Outcomes of the default proxy on the standard library, each trained once."""
    outcomes: dict[tuple[str, int], Outcome] = {}

    def outcome(name: str, seed: int) -> Outcome:
        if (name, seed) not in outcomes:
            proxy = CharLM(train_flops=SECOND, base_lr=5e-3)
            spec = TrialSpec(theta=NAMED[name], proxy=proxy, width=proxy.width_for(NAMED[name]), seed=seed)
            outcomes[name, seed] = evaluate(spec, library_workspace)
        return outcomes[name, seed]

    return outcome


def loss_of(outcome: Outcome) -> float:
    assert outcome.kind is OutcomeKind.COMPLETED, outcome.reason
    assert outcome.loss is not None
    return outcome.loss


class TestLearning:
    @pytest.mark.parametrize("name", NAMED)
    def test_gets_well_below_knowing_nothing(self, learnt: Callable[[str, int], Outcome], name: str) -> None:
        assert loss_of(learnt(name, 0)) < KNOWS_NOTHING - 1

    @pytest.mark.parametrize("name", ["dense", "btt"])
    def test_gets_as_far_from_another_seed(self, learnt: Callable[[str, int], Outcome], name: str) -> None:
        assert abs(loss_of(learnt(name, 0)) - loss_of(learnt(name, 1))) < 0.1

    def test_goes_on_over_the_run(self, learnt: Callable[[str, int], Outcome]) -> None:
        losses = [report.loss for report in learnt("dense", 0).curve]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] > losses[-1] + 0.5


class TestLoss:
    @pytest.mark.parametrize("name", ["dense", "btt"])
    def test_is_the_same_to_the_last_bit_for_the_same_spec(self, workspace: Workspace, name: str) -> None:
        first, other, again = (evaluate(micro_trial(name, seed=seed), workspace) for seed in (0, 1, 0))
        assert loss_of(first) == loss_of(again)
        assert first.curve == again.curve
        assert loss_of(first) != loss_of(other)

    def test_does_not_depend_on_the_generators_of_the_process(self, workspace: Workspace) -> None:
        losses = set()
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            losses.add(loss_of(evaluate(micro_trial(), workspace)))
        assert len(losses) == 1

    def test_leaves_the_generators_of_the_process_as_they_are(self, workspace: Workspace) -> None:
        torch.manual_seed(12345)
        before = torch.get_rng_state()
        kind, keys, *rest = np.random.get_state()
        evaluate(micro_trial(), workspace)
        assert torch.equal(torch.get_rng_state(), before)
        kind_after, keys_after, *rest_after = np.random.get_state()
        assert (kind, list(keys), rest) == (kind_after, list(keys_after), rest_after)

    @pytest.mark.parametrize("name", ["dense", "monarch", "low-rank"])
    def test_is_what_a_second_loop_arrives_at(self, workspace: Workspace, name: str) -> None:
        spec = micro_trial(name, seed=3)
        assert loss_of(evaluate(spec, workspace)) == pytest.approx(second_loop(spec, workspace), rel=1e-5)


class TestBudget:
    @pytest.mark.parametrize("name", NAMED)
    def test_is_spent_to_within_one_step(self, workspace: Workspace, name: str) -> None:
        spec = micro_trial(name)
        outcome = evaluate(spec, workspace)
        last = outcome.curve[-1]
        step = 6 * spec.proxy.cost(spec.theta, spec.width).macs * spec.proxy.examples_per_step
        assert abs(last.step * step - spec.proxy.train_flops) <= step
        assert last.train_flops == pytest.approx(last.step * step, rel=1e-12)

    def test_is_one_step_where_that_already_costs_more(self, workspace: Workspace) -> None:
        outcome = evaluate(micro_trial(train_flops=1e6, batch_size=64), workspace)
        assert [report.step for report in outcome.curve] == [1]
        assert outcome.curve[0].train_flops > 1e6


class TestCurve:
    def test_tells_examples_and_compute_of_every_point(self, workspace: Workspace) -> None:
        spec = micro_trial("btt")
        outcome = evaluate(spec, workspace)
        macs = spec.proxy.cost(spec.theta, spec.width).macs
        examples = [4 * 16 * report.step for report in outcome.curve]
        assert [report.examples for report in outcome.curve] == examples
        assert [report.train_flops for report in outcome.curve] == [6 * macs * count for count in examples]

    def test_has_a_point_at_every_half_power_of_2_and_ends_with_the_loss(self, workspace: Workspace) -> None:
        outcome = evaluate(micro_trial(), workspace)
        steps = [report.step for report in outcome.curve]
        assert steps == sorted(curve_steps(steps[-1]))
        assert outcome.curve[-1].loss == outcome.loss

    def test_is_reported_point_by_point(self, workspace: Workspace) -> None:
        reports: list[Report] = []
        outcome = evaluate(micro_trial(), workspace, report=reports.append)
        assert tuple(reports) == outcome.curve


class TestInfeasible:
    @pytest.mark.parametrize("train_flops", [2e7, 2e8])
    @pytest.mark.parametrize("name", ["dense", "monarch", "low-rank", "kronecker"])
    def test_is_a_run_that_diverges_and_the_reason_says_where(
        self, workspace: Workspace, name: str, train_flops: float
    ) -> None:
        reports: list[Report] = []
        spec = micro_trial(name, base_lr=1000.0, train_flops=train_flops)
        outcome = evaluate(spec, workspace, report=reports.append)
        assert (outcome.kind, outcome.loss) == (OutcomeKind.INFEASIBLE, None)
        assert re.search(r"loss is \S+ at step \d+ of \d+", str(outcome.reason))
        assert outcome.curve == tuple(reports)

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("short.txt", "corpus: expected at least 17 held-out characters, got 16"),
            ("../outside.txt", "path: expected a text file below the directory that the operator allows, got '../out"),
        ],
    )
    def test_is_a_text_that_cannot_serve(self, workspace: Workspace, path: str, reason: str) -> None:
        assert workspace.corpora_dir
        (workspace.corpora_dir / "short.txt").write_text("x" * 339)
        (workspace.corpora_dir.parent / "outside.txt").write_text("x" * 1000)
        outcome = evaluate(micro_trial(corpus=FileCorpus(path=path)), workspace)
        assert outcome.kind is OutcomeKind.INFEASIBLE
        assert outcome.reason
        assert outcome.reason.startswith(reason)
        assert outcome.curve == ()


class TestStopping:
    def test_cancels_before_the_first_step(self, workspace: Workspace) -> None:
        outcome = evaluate(micro_trial(), workspace, should_stop=lambda: True)
        assert (outcome.kind, outcome.loss, outcome.curve) == (OutcomeKind.CANCELLED, None, ())

    def test_keeps_the_curve_up_to_there(self, workspace: Workspace) -> None:
        reports: list[Report] = []
        whole = evaluate(micro_trial(), workspace)
        outcome = evaluate(micro_trial(), workspace, report=reports.append, should_stop=lambda: len(reports) == 3)
        assert outcome.kind is OutcomeKind.CANCELLED
        assert outcome.curve == whole.curve[:3]


class TestContinuation:
    """A trial that runs in pieces, each as an attempt of its own."""

    @pytest.fixture
    def durable(self, workspace: Workspace, tmp_path: Path) -> Workspace:
        return replace(workspace, checkpoints_dir=tmp_path / "checkpoints")

    @pytest.mark.parametrize("name", ["dense", "btt"])
    @pytest.mark.parametrize("num_steps", [0, 1, 8, 20])
    def test_gives_the_same_curve_to_the_last_bit(self, durable: Workspace, name: str, num_steps: int) -> None:
        whole = evaluate(micro_trial(name), durable)
        first = evaluate(micro_trial(name), durable, key="5f0c2ab91d3e-7-1", should_checkpoint=after(num_steps))
        assert (first.kind, first.resumed_step) == (OutcomeKind.CHECKPOINTED, 0)
        assert first.curve == tuple(report for report in whole.curve if report.step <= num_steps)
        second = evaluate(micro_trial(name), durable, key="5f0c2ab91d3e-7-2")
        assert second.resumed_step == num_steps
        assert (second.loss, second.curve) == (whole.loss, whole.curve)
        assert second.seconds > first.seconds

    def test_does_so_in_many_pieces(self, durable: Workspace) -> None:
        steps = []
        for attempt in range(1, 5):
            piece = evaluate(micro_trial(), durable, key=f"5f0c2ab91d3e-7-{attempt}", should_checkpoint=after(4))
            steps.append(piece.resumed_step)
        assert steps == [0, 4, 8, 12]
        assert evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-5").curve == evaluate(micro_trial(), durable).curve

    def test_reports_what_is_new_only(self, durable: Workspace) -> None:
        reports: list[Report] = []
        evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-1", should_checkpoint=after(10))
        outcome = evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-2", report=reports.append)
        assert tuple(reports) == tuple(report for report in outcome.curve if report.step > 10)

    def test_keeps_the_generators_of_the_process_as_they_are(self, durable: Workspace) -> None:
        evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-1", should_checkpoint=after(10))
        before = torch.get_rng_state()
        evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-2")
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        ("spec", "key"),
        [
            (micro_trial(seed=1), "5f0c2ab91d3e-7-2"),
            (micro_trial("btt"), "5f0c2ab91d3e-7-2"),
            (micro_trial(base_lr=1e-3), "5f0c2ab91d3e-7-2"),
            (micro_trial(), "5f0c2ab91d3e-8-2"),
            (micro_trial(), "5f0c2ab91d3e-77-2"),
            (micro_trial(), "5f0c2ab91d3e-7-1"),
        ],
    )
    def test_is_of_an_earlier_attempt_at_the_same_trial(self, durable: Workspace, spec: TrialSpec, key: str) -> None:
        evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-1", should_checkpoint=after(10))
        assert evaluate(spec, durable, key=key).resumed_step == 0

    def test_is_possible_from_what_was_written_on_the_way(self, durable: Workspace) -> None:
        often = replace(durable, checkpoint_every=0.0)
        with pytest.raises(KeyboardInterrupt):
            evaluate(micro_trial(), often, key="5f0c2ab91d3e-7-1", should_stop=interrupt_after(12))
        outcome = evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-2")
        assert outcome.resumed_step == 11
        assert outcome.curve == evaluate(micro_trial(), durable).curve

    @pytest.mark.parametrize("should_stop", [lambda: False, lambda: True])
    def test_is_over_with_the_trial(self, durable: Workspace, should_stop: Callable[[], bool]) -> None:
        assert durable.checkpoints_dir
        evaluate(micro_trial(), durable, key="5f0c2ab91d3e-70-1", should_checkpoint=after(10))
        evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-1", should_checkpoint=after(10))
        evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-2", should_stop=should_stop)
        assert [path.name for path in durable.checkpoints_dir.iterdir()] == ["5f0c2ab91d3e-70-1.pt"]

    def test_is_over_with_a_fault(self, durable: Workspace) -> None:
        def fail() -> bool:
            raise ZeroDivisionError

        assert durable.checkpoints_dir
        evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-1", should_checkpoint=after(10))
        with pytest.raises(ZeroDivisionError):
            evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-2", should_stop=fail)
        assert list(durable.checkpoints_dir.iterdir()) == []

    @pytest.mark.parametrize("occasion", [{"should_checkpoint": lambda: True}, {}])
    def test_is_not_worth_a_trial_where_nothing_can_be_written(
        self, durable: Workspace, caplog: pytest.LogCaptureFixture, occasion: dict[str, Any]
    ) -> None:
        assert durable.checkpoints_dir
        durable.checkpoints_dir.write_text("not a folder")
        outcome = evaluate(micro_trial(), replace(durable, checkpoint_every=0.0), key="5f0c2ab91d3e-7-1", **occasion)
        assert outcome.kind is (OutcomeKind.CHECKPOINTED if occasion else OutcomeKind.COMPLETED)
        assert "5f0c2ab91d3e-7-1.pt was not written" in caplog.text

    def test_needs_the_key_of_an_attempt(self, durable: Workspace) -> None:
        with pytest.raises(
            ValueError, match=r"expected a key like 5f0c2ab91d3e-7-2 \(search, trial, attempt\), got '\.\./a"
        ):
            evaluate(micro_trial(), durable, key="../a-1-1")


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [
            MemoryError("no room for 80 GiB"),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB."),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ],
    )
    def test_that_runs_out_is_an_outcome_with_the_curve_so_far(self, workspace: Workspace, error: Exception) -> None:
        def run_out(report: Report) -> None:
            raise error

        outcome = evaluate(micro_trial(), workspace, report=run_out)
        assert outcome.kind is OutcomeKind.OUT_OF_MEMORY
        assert str(outcome.reason).startswith(f"{type(error).__name__}: {str(error)[:20]}")
        assert len(outcome.curve) == 1

    def test_that_runs_out_really_is_recognised(self, workspace: Workspace) -> None:
        def run_out(report: Report) -> None:
            torch.empty(2**60)

        assert evaluate(micro_trial(), workspace, report=run_out).kind is OutcomeKind.OUT_OF_MEMORY

    def test_that_runs_out_leaves_the_checkpoint_for_the_next_attempt(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        def run_out() -> bool:
            raise MemoryError

        durable = replace(workspace, checkpoints_dir=tmp_path / "checkpoints")
        evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-1", should_checkpoint=after(10))
        evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-2", should_stop=run_out)
        assert evaluate(micro_trial(), durable, key="5f0c2ab91d3e-7-3").resumed_step == 10


class TestFaults:
    def test_of_the_machine_are_raised(self, workspace: Workspace) -> None:
        workspace.cache_dir.write_text("not a folder")
        with pytest.raises(OSError, match=str(workspace.cache_dir)):
            evaluate(micro_trial(), workspace)

    def test_of_whoever_listens_are_raised(self, workspace: Workspace) -> None:
        def fail(report: Report) -> None:
            raise RuntimeError("nobody listens")

        with pytest.raises(RuntimeError, match="nobody listens"):
            evaluate(micro_trial(), workspace, report=fail)


def after(num_steps: int) -> Callable[[], bool]:
    """True for the first time when it was asked before each of so many steps."""
    asked = count()
    return lambda: next(asked) >= num_steps


def interrupt_after(num_steps: int) -> Callable[[], bool]:
    """End the process, as far as a trial can tell, after so many steps."""
    is_over = after(num_steps)

    def interrupt() -> bool:
        if is_over():
            raise KeyboardInterrupt
        return False

    return interrupt


def second_loop(spec: TrialSpec, workspace: Workspace) -> float:
    """The held-out loss of averaged weights, by another optimiser's code and a plain average of each parameter."""
    proxy = proxy_for(spec.proxy)
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        model = proxy.build(spec.theta, spec.width)
    task = proxy.task(spec.seed, workspace, torch.device("cpu"))
    macs = spec.proxy.cost(spec.theta, spec.width).macs
    num_steps = round(spec.proxy.train_flops / (6 * macs * 4 * 16))
    groups = param_groups(model, spec.proxy)
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95), foreach=False, fused=False)
    final = [group["lr"] for group in optimiser.param_groups]
    averages = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for step, batch in enumerate(islice(task.batches, num_steps), start=1):
        for group, lr in zip(optimiser.param_groups, final, strict=True):
            group["lr"] = lr * min(1, step / min(50, num_steps // 10))
        optimiser.zero_grad()
        task.loss(model, batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimiser.step()
        for average, parameter in zip(averages, model.parameters(), strict=True):
            average += min(1, 11 / (step + 10)) * (parameter.detach() - average)
    with torch.no_grad():
        for average, parameter in zip(averages, model.parameters(), strict=True):
            parameter.copy_(average)
        return task.held_out_loss(model)


class TestFirstTrial:
    def test_does_not_wait_for_what_only_torch_compile_needs(self, workspace: Workspace) -> None:
        # In a process of its own: this one may have compiled something.
        code = (
            "import pathlib, sys; from tests.workers.specs import micro_trial; from workers.evaluate import evaluate; "
            "from workers.workspace import Workspace; folders = map(pathlib.Path, sys.argv[1:]); "
            "workspace = Workspace(cache_dir=next(folders), corpora_dir=next(folders)); "
            "print(evaluate(micro_trial(), workspace).kind, 'torch._dynamo' in sys.modules)"
        )
        folders = [str(workspace.cache_dir), str(workspace.corpora_dir)]
        ran = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True)
        assert ran.stdout == "COMPLETED False\n"
