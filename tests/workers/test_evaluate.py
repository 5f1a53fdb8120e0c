"""One trial from its spec to its outcome."""

import math
import re
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch

from einlayers.theta import NAMED
from search.proxies import CharLM, FileCorpus
from search.trial import Outcome, OutcomeKind, Report, TrialSpec
from tests.workers.specs import micro_trial
from workers.evaluate import evaluate
from workers.proxies.registry import proxy_for
from workers.training import checkpoints
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
            proxy = CharLM(train_flops=SECOND)
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
        step = 6 * spec.proxy.cost(spec.theta, spec.width).macs * spec.proxy.batch_size * spec.proxy.context
        assert abs(last.step * step - spec.proxy.train_flops) <= step
        assert last.train_flops == pytest.approx(last.step * step, rel=1e-12)

    def test_is_one_step_where_that_already_costs_more(self, workspace: Workspace) -> None:
        outcome = evaluate(micro_trial(train_flops=1e6, batch_size=64), workspace)
        assert [report.step for report in outcome.curve] == [1]
        assert outcome.curve[0].train_flops > 1e6


class TestCurve:
    def test_tells_tokens_and_compute_of_every_point(self, workspace: Workspace) -> None:
        spec = micro_trial("btt")
        outcome = evaluate(spec, workspace)
        macs = spec.proxy.cost(spec.theta, spec.width).macs
        tokens = [4 * 16 * report.step for report in outcome.curve]
        assert [report.tokens for report in outcome.curve] == tokens
        assert [report.train_flops for report in outcome.curve] == [6 * macs * count for count in tokens]

    def test_has_a_point_at_every_checkpoint_and_ends_with_the_loss(self, workspace: Workspace) -> None:
        outcome = evaluate(micro_trial(), workspace)
        steps = [report.step for report in outcome.curve]
        assert steps == sorted(checkpoints(steps[-1]))
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


def second_loop(spec: TrialSpec, workspace: Workspace) -> float:
    """The held-out loss of averaged weights, by another optimiser's code and a plain average of each parameter."""
    proxy = proxy_for(spec.proxy)
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        model = proxy.build(spec)
    task = proxy.task(spec, workspace, torch.device("cpu"))
    macs = spec.proxy.cost(spec.theta, spec.width).macs
    num_steps = round(spec.proxy.train_flops / (6 * macs * 4 * 16))
    groups = param_groups(model, base_lr=5e-3, base_width=32, width=spec.width)
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
