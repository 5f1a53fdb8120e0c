"""What every pool keeps: subclass, and give one fixture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from search.proxies.char_lm import FileCorpus
from search.spec import Resources
from search.trial import Outcome, OutcomeKind, TrialSpec
from tests.waiting import wait_for
from tests.workers.specs import ENDLESS, micro_trial
from workers.evaluate import evaluate
from workers.pool import Assignment, Event, Finished, Lost, Pool, Progress
from workers.workspace import Workspace

WHOLE = Resources(cpus=1.5)
"""More than half of the smallest pool of these tests, so that nothing fits beside it; and still one thread."""


def assignment_of(key: str, spec: TrialSpec) -> Assignment:
    return Assignment(key=key, label=f"trial {key}", spec=spec)


@dataclass
class Driver:
    """Uses a pool as a runner does, and keeps all that it tells."""

    pool: Pool
    events: list[Event] = field(default_factory=list)

    def wait(self) -> None:
        """Hear what happened."""
        self.events += self.pool.wait(0.05)

    def reserve(self, resources: Resources = WHOLE) -> str:
        """A slot with these resources, once there is one."""

        def attempt() -> Sequence[str]:
            slots = self.pool.reserve(resources, wanted=1)
            if not slots:
                self.wait()
            return slots

        return wait_for(attempt, what=f"a slot with {resources}")[0]

    def reserve_some(self, number: int, resources: Resources) -> None:
        """Have so many slots with these resources ready."""

        def ready() -> int:
            self.pool.reserve(resources, wanted=number)
            self.wait()
            return self.pool.num_slots

        wait_for(ready, until=lambda num_slots: num_slots == number, what=f"{number} slots")

    def start(self, key: str, spec: TrialSpec, resources: Resources = WHOLE) -> str:
        """Submit an assignment to a slot of its own; the slot."""
        slot = self.reserve(resources)
        self.pool.submit(slot, assignment_of(key, spec))
        return slot

    def end(self, key: str) -> Finished | Lost:
        """The end of an assignment, once it is told."""

        return wait_for(lambda: self.heard(key), what=f"the end of {key}")[0]

    def heard(self, key: str) -> list[Finished | Lost]:
        """The same as ``ends``, after another wait."""
        self.wait()
        return self.ends(key)

    def ends(self, key: str) -> list[Finished | Lost]:
        """How often, and how, the end of an assignment was told so far."""
        return [event for event in self.events if isinstance(event, (Finished, Lost)) and event.key == key]

    def outcome(self, key: str) -> Outcome:
        """The outcome of an assignment, which must not get lost."""
        end = self.end(key)
        assert isinstance(end, Finished), end
        return end.outcome


class PoolContract:
    """An assignment goes in; progress comes out, and its end, once."""

    @pytest.fixture
    def make_pool(self) -> Callable[[Workspace], Pool]:
        raise NotImplementedError("give the maker of the pool that is to keep the contract")

    @pytest.fixture
    def driver(self, make_pool: Callable[[Workspace], Pool], workspace: Workspace) -> Driver:
        return Driver(make_pool(workspace))

    def test_starts_with_nothing_to_do_and_nothing_to_tell(self, driver: Driver) -> None:
        assert driver.pool.assignments() == {}
        assert list(driver.pool.wait(0)) == []
        assert driver.pool.missing(WHOLE) is None

    def test_gives_a_slot_to_one_assignment_until_its_end_is_told(self, driver: Driver) -> None:
        slot = driver.reserve()
        # A reservation obliges to nothing.
        assert driver.reserve() == slot
        assert driver.pool.assignments() == {}
        assert driver.start("a", micro_trial()) == slot
        assert driver.pool.assignments() == {"a": slot}
        assert not driver.pool.reserve(WHOLE, wanted=2)
        driver.outcome("a")
        assert driver.pool.assignments() == {}
        assert driver.start("b", micro_trial()) == slot
        assert driver.outcome("b").kind is OutcomeKind.COMPLETED
        assert len(driver.ends("a")) == 1

    def test_tells_the_progress_and_the_outcome_that_evaluate_tells(self, driver: Driver, workspace: Workspace) -> None:
        driver.start("a", micro_trial("btt", seed=5))
        outcome, expected = driver.outcome("a"), evaluate(micro_trial("btt", seed=5), workspace)
        assert outcome.kind is OutcomeKind.COMPLETED
        assert (outcome.loss, outcome.curve) == (expected.loss, expected.curve)
        *before, last = driver.events
        assert isinstance(last, Finished)
        # Not every point need be told, but each at most once and in its place.
        progress = [event for event in before if isinstance(event, Progress)]
        assert progress == before
        assert {event.key for event in progress} <= {"a"}
        positions = [expected.curve.index(event.report) for event in progress]
        assert positions == sorted(set(positions))

    def test_calls_what_cannot_be_trained_infeasible(self, driver: Driver) -> None:
        driver.start("a", micro_trial(corpus=FileCorpus(path="nothing.txt")))
        outcome = driver.outcome("a")
        assert outcome.kind is OutcomeKind.INFEASIBLE
        assert str(outcome.reason).startswith("path: expected ")

    def test_survives_a_fault_and_tells_where_it_was(self, driver: Driver, workspace: Workspace) -> None:
        workspace.cache_dir.write_text("a file where a folder should be")
        driver.start("a", micro_trial())
        outcome = driver.outcome("a")
        assert outcome.kind is OutcomeKind.FAILED
        assert str(outcome.reason).startswith("Traceback (most recent call last):")
        assert "in evaluate" in str(outcome.reason)
        assert "Error: " in str(outcome.reason).splitlines()[-1]
        workspace.cache_dir.unlink()
        driver.start("b", micro_trial())
        assert driver.outcome("b").kind is OutcomeKind.COMPLETED

    def test_cancels_what_is_stopped_and_nothing_else(self, driver: Driver) -> None:
        driver.start("a", micro_trial(train_flops=ENDLESS))
        driver.pool.stop("unknown")
        driver.pool.stop("a")
        assert driver.outcome("a").kind is OutcomeKind.CANCELLED
        driver.start("b", micro_trial())
        driver.pool.stop("a")
        assert driver.outcome("b").kind is OutcomeKind.COMPLETED
        driver.pool.stop("b")
        driver.wait()
        assert len(driver.ends("a")) == len(driver.ends("b")) == 1

    def test_checkpoints_what_it_is_asked_to_and_nothing_else(self, driver: Driver) -> None:
        driver.start("a", micro_trial(train_flops=ENDLESS))
        driver.pool.checkpoint("unknown")
        driver.pool.checkpoint("a")
        driver.pool.checkpoint("a")
        assert driver.outcome("a").kind is OutcomeKind.CHECKPOINTED
        driver.start("b", micro_trial())
        driver.pool.checkpoint("a")
        assert driver.outcome("b").kind is OutcomeKind.COMPLETED

    def test_continues_in_the_next_attempt(
        self, make_pool: Callable[[Workspace], Pool], workspace: Workspace, tmp_path: Path
    ) -> None:
        spec = micro_trial("btt", train_flops=2e8)
        driver = Driver(make_pool(replace(workspace, checkpoints_dir=tmp_path / "checkpoints")))
        driver.start("5f0c2ab91d3e-0-1", spec)
        driver.pool.checkpoint("5f0c2ab91d3e-0-1")
        assert driver.outcome("5f0c2ab91d3e-0-1").kind is OutcomeKind.CHECKPOINTED
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5f0c2ab91d3e-0-1.pt"]
        driver.start("5f0c2ab91d3e-0-2", spec)
        outcome, expected = driver.outcome("5f0c2ab91d3e-0-2"), evaluate(spec, workspace)
        assert (outcome.loss, outcome.curve) == (expected.loss, expected.curve)
        assert list((tmp_path / "checkpoints").iterdir()) == []

    def test_adopts_what_a_slot_runs_or_ran_last(self, driver: Driver) -> None:
        slot = driver.start("a", micro_trial())
        assert driver.pool.adopt(slot, "a")
        assert not driver.pool.adopt(slot, "b")
        assert not driver.pool.adopt("no such slot", "a")
        first = driver.outcome("a")
        assert driver.pool.adopt(slot, "a")
        assert driver.pool.assignments() == {"a": slot}
        assert not driver.pool.reserve(WHOLE, wanted=1)
        wait_for(lambda: driver.heard("a"), until=lambda ends: len(ends) == 2, what="the second telling")
        assert driver.outcome("a") == first
        assert driver.start("b", micro_trial()) == slot
        driver.outcome("b")
        assert not driver.pool.adopt(slot, "a")

    def test_forgets_what_it_abandons(self, driver: Driver) -> None:
        driver.start("a", micro_trial())
        driver.pool.abandon("a")
        driver.pool.abandon("unknown")
        assert driver.pool.assignments() == {}
        driver.wait()
        assert driver.ends("a") == []

    def test_holds_no_more_slots_than_it_may(self, driver: Driver) -> None:
        driver.reserve()
        assert driver.pool.num_slots == 1
        driver.pool.keep_at_most(0)
        assert driver.pool.num_slots == 0
        assert not driver.pool.reserve(WHOLE, wanted=1)
        driver.pool.keep_at_most(None)
        driver.start("a", micro_trial())
        driver.pool.keep_at_most(0)
        assert driver.outcome("a").kind is OutcomeKind.COMPLETED
        assert driver.pool.num_slots == 0

    def test_lets_a_trial_be_alone_with_resources_that_exist(self, driver: Driver) -> None:
        alone = driver.pool.alone(WHOLE)
        assert alone.cpus >= WHOLE.cpus
        assert driver.pool.missing(alone) is None

    def test_reclaims_nothing_where_there_is_nothing(self, driver: Driver) -> None:
        driver.pool.reclaim([])
        driver.wait()
        assert driver.pool.assignments() == {}
