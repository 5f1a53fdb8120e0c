"""A slot as its actor uses it: one thread trains, others ask."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search.spec import Resources
from search.trial import Outcome, OutcomeKind
from tests.waiting import wait_for
from tests.workers.specs import ENDLESS, micro_trial
from workers.evaluate import evaluate
from workers.slot import Refused, Slot, SlotView
from workers.workspace import Workspace

RESOURCES = Resources(cpus=1)
ME, ANOTHER = "runner 1", "runner 2"


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A slot sets the number of torch's threads for its process, which is ours here."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def slot(workspace: Workspace) -> Slot:
    return Slot(RESOURCES, workspace, ME)


@pytest.fixture
def background(slot: Slot) -> Iterator[ThreadPoolExecutor]:
    """Threads for what would block; what they run in the slot is stopped in the end, also where the test failed."""
    with ThreadPoolExecutor(4) as threads:
        yield threads
        slot.stop(str(slot.view().key))


def start(slot: Slot, key: str, background: ThreadPoolExecutor) -> "Future[Outcome]":
    """Start an assignment that has no end of its own; it runs when this returns."""
    run = background.submit(slot.run, key, micro_trial(train_flops=ENDLESS), ME)
    wait_for(lambda: slot.view().key == key, what=f"the start of {key}")
    return run


class TestThreads:
    @pytest.mark.parametrize(("cpus", "num_threads"), [(0.25, 1), (1, 1), (1.5, 1), (2, 2)])
    def test_are_as_many_as_its_whole_cpus(self, workspace: Workspace, cpus: float, num_threads: int) -> None:
        Slot(Resources(cpus=cpus), workspace, ME)
        assert torch.get_num_threads() == num_threads

    def test_is_one_where_it_has_a_gpu_only(self, workspace: Workspace) -> None:
        Slot(Resources(cpus=0, gpus=1), workspace, ME)
        assert torch.get_num_threads() == 1


class TestRun:
    def test_gives_the_outcome_of_evaluate(self, slot: Slot, workspace: Workspace) -> None:
        outcome, expected = slot.run("a", micro_trial(), ME), evaluate(micro_trial(), workspace)
        assert outcome.kind is OutcomeKind.COMPLETED
        assert (outcome.loss, outcome.curve) == (expected.loss, expected.curve)

    def test_survives_a_fault(self, slot: Slot, workspace: Workspace) -> None:
        workspace.cache_dir.write_text("a file where a folder should be")
        assert slot.run("a", micro_trial(), ME).kind is OutcomeKind.FAILED
        workspace.cache_dir.unlink()
        assert slot.run("b", micro_trial(), ME).kind is OutcomeKind.COMPLETED


class TestView:
    def test_of_a_new_slot_holds_nothing(self, slot: Slot) -> None:
        assert slot.view() == SlotView(resources=RESOURCES, owner=ME, key=None, report=None, outcome=None)

    def test_remembers_how_the_last_assignment_ended(self, slot: Slot) -> None:
        outcome = slot.run("a", micro_trial(), ME)
        assert slot.view() == SlotView(
            resources=RESOURCES, owner=ME, key="a", report=outcome.curve[-1], outcome=outcome
        )

    def test_forgets_it_when_the_next_one_starts(self, slot: Slot, background: ThreadPoolExecutor) -> None:
        slot.run("a", micro_trial(), ME)
        run = start(slot, "b", background)
        assert slot.view() == SlotView(resources=RESOURCES, owner=ME, key="b", report=None, outcome=None)
        slot.stop("b")
        run.result()

    def test_shows_how_far_a_running_assignment_has_got(self, slot: Slot, background: ThreadPoolExecutor) -> None:
        run = background.submit(slot.run, "a", micro_trial(train_flops=1e10), ME)
        view = wait_for(slot.view, until=lambda view: view.report, what="a report")
        slot.stop("a")
        assert view.key == "a"
        assert view.report in run.result().curve


class TestFollow:
    def test_gives_the_outcome_of_what_ran_last_at_once(self, slot: Slot) -> None:
        outcome = slot.run("a", micro_trial(), ME)
        assert slot.follow("a") is outcome
        assert slot.follow("a") is outcome

    def test_waits_for_the_end_of_what_runs(self, slot: Slot, background: ThreadPoolExecutor) -> None:
        run = start(slot, "a", background)
        followers = [background.submit(slot.follow, "a") for _ in range(2)]
        slot.stop("a")
        assert [follower.result() for follower in followers] == [run.result()] * 2
        assert run.result().kind is OutcomeKind.CANCELLED

    def test_does_not_know_what_another_slot_runs(self, slot: Slot, background: ThreadPoolExecutor) -> None:
        with pytest.raises(LookupError, match="the slot holds None, not a"):
            slot.follow("a")
        run = start(slot, "b", background)
        with pytest.raises(LookupError, match="the slot holds b, not a"):
            slot.follow("a")
        slot.stop("b")
        run.result()

    def test_does_not_know_what_ran_before_the_last(self, slot: Slot) -> None:
        slot.run("a", micro_trial(), ME)
        slot.run("b", micro_trial(), ME)
        with pytest.raises(LookupError, match="the slot holds b, not a"):
            slot.follow("a")


class TestStop:
    def test_ends_what_runs(self, slot: Slot, background: ThreadPoolExecutor) -> None:
        run = start(slot, "a", background)
        slot.stop("a")
        assert run.result().kind is OutcomeKind.CANCELLED

    def test_ends_what_has_not_started_yet(self, slot: Slot) -> None:
        slot.stop("a")
        assert slot.run("a", micro_trial(train_flops=ENDLESS), ME).kind is OutcomeKind.CANCELLED

    def test_leaves_everything_else_alone(self, slot: Slot) -> None:
        slot.run("a", micro_trial(), ME)
        slot.stop("a")
        assert slot.run("b", micro_trial(), ME).kind is OutcomeKind.COMPLETED


class TestCheckpoint:
    def test_ends_what_runs_and_nothing_else(self, slot: Slot, background: ThreadPoolExecutor) -> None:
        run = start(slot, "a", background)
        slot.checkpoint("b")
        slot.checkpoint("a")
        assert run.result().kind is OutcomeKind.CHECKPOINTED
        assert slot.run("c", micro_trial(), ME).kind is OutcomeKind.COMPLETED


class TestOwner:
    def test_is_the_only_one_who_may_use_it(self, slot: Slot) -> None:
        with pytest.raises(Refused, match=r"^the slot is runner runner 1's, not runner 2's: a was not started$"):
            slot.run("a", micro_trial(), ANOTHER)
        assert slot.view() == SlotView(resources=RESOURCES, owner=ME, key=None, report=None, outcome=None)

    def test_changes_with_an_adoption(self, slot: Slot, background: ThreadPoolExecutor) -> None:
        run = start(slot, "a", background)
        assert slot.adopt(ANOTHER, "a") == slot.view()
        assert slot.view().owner == ANOTHER
        slot.stop("a")
        assert run.result().kind is OutcomeKind.CANCELLED
        with pytest.raises(Refused):
            slot.run("late", micro_trial(), ME)
        assert slot.run("b", micro_trial(), ANOTHER).kind is OutcomeKind.COMPLETED

    def test_stays_where_the_slot_holds_something_else(self, slot: Slot) -> None:
        slot.run("a", micro_trial(), ME)
        assert slot.adopt(ANOTHER, "b").owner == ME
        assert slot.adopt(ANOTHER, "a").owner == ANOTHER

    @pytest.mark.parametrize(("living", "owner"), [({ME, ANOTHER}, ME), ({ANOTHER}, ANOTHER), (set(), ANOTHER)])
    def test_is_inherited_from_one_who_is_gone(self, slot: Slot, living: set[str], owner: str) -> None:
        assert slot.inherit(ANOTHER, living, idle_seconds=60).owner == owner

    def test_is_not_inherited_while_it_runs_something(self, slot: Slot, background: ThreadPoolExecutor) -> None:
        run = start(slot, "a", background)
        assert slot.inherit(ANOTHER, set(), idle_seconds=0).owner == ME
        slot.stop("a")
        run.result()
        assert slot.inherit(ANOTHER, set(), idle_seconds=0).owner == ANOTHER

    def test_is_not_inherited_while_its_last_outcome_may_be_asked_for(self, slot: Slot) -> None:
        slot.run("a", micro_trial(), ME)
        assert slot.inherit(ANOTHER, set(), idle_seconds=60).owner == ME
        assert slot.inherit(ANOTHER, set(), idle_seconds=0).owner == ANOTHER

    def test_is_not_inherited_from_one_who_came_back(self, slot: Slot) -> None:
        slot.run("a", micro_trial(), ME)
        slot.inherit(ANOTHER, set(), idle_seconds=60)
        assert slot.inherit(ANOTHER, {ME}, idle_seconds=0).owner == ME


class TestForgottenCheckpoints:
    def test_are_deleted_when_a_slot_starts(self, workspace: Workspace, tmp_path: Path) -> None:
        forgotten = tmp_path / "5f0c2ab91d3e-7-1.pt"
        forgotten.touch()
        os.utime(forgotten, (0, 0))
        Slot(RESOURCES, replace(workspace, checkpoints_dir=tmp_path), ME)
        assert not forgotten.exists()


class TestDevice:
    def test_is_the_cpu_where_no_gpu_was_asked_for(self, slot: Slot) -> None:
        used: set[torch.device] = set()

        def remember(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            used.add(inputs[0].device)

        hook = torch.nn.modules.module.register_module_forward_pre_hook(remember)
        slot.run("a", micro_trial(), ME)
        hook.remove()
        assert used == {torch.device("cpu")}
