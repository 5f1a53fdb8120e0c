import subprocess
import sys
from collections.abc import Callable

import pytest

from search.spec import Resources
from search.trial import OutcomeKind
from tests.contracts.pool import Driver, PoolContract
from tests.workers.specs import micro_trial
from workers.pool import LocalPool, Pool, Progress, run_assignment
from workers.workspace import Workspace


class TestLocalPool(PoolContract):
    @pytest.fixture
    def make_pool(self) -> Callable[[Workspace], Pool]:
        return LocalPool

    def test_tells_every_point_of_the_curve(self, driver: Driver) -> None:
        driver.start("a", micro_trial())
        curve = driver.outcome("a").curve
        assert tuple(event.report for event in driver.events if isinstance(event, Progress)) == curve

    def test_takes_every_resource_to_be_there(self, driver: Driver) -> None:
        plenty = Resources(cpus=1024, gpus=64)
        assert driver.pool.missing(plenty) is None
        assert driver.reserve(plenty)

    def test_goes_on_after_it_was_closed(self, driver: Driver) -> None:
        driver.start("a", micro_trial())
        driver.pool.close()
        assert driver.outcome("a").kind is OutcomeKind.COMPLETED


class TestRunAssignment:
    def test_passes_evaluates_own_outcomes_on(self, workspace: Workspace) -> None:
        assert run_assignment(micro_trial(), workspace).kind is OutcomeKind.COMPLETED
        assert run_assignment(micro_trial(), workspace, should_stop=lambda: True).kind is OutcomeKind.CANCELLED

    def test_turns_a_fault_into_a_failed_outcome_with_its_traceback(self, workspace: Workspace) -> None:
        def fail() -> bool:
            raise ZeroDivisionError("in the middle of it")

        outcome = run_assignment(micro_trial(), workspace, should_stop=fail)
        assert outcome.kind is OutcomeKind.FAILED
        lines = str(outcome.reason).splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1] == "ZeroDivisionError: in the middle of it"
        assert any(line.endswith(", in fail") for line in lines)

    def test_lets_what_ends_the_process_through(self, workspace: Workspace) -> None:
        def interrupt() -> bool:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_assignment(micro_trial(), workspace, should_stop=interrupt)


class TestRunner:
    @pytest.mark.parametrize("module", ["service.runner", "workers.ray_pool", "workers.slot"])
    def test_needs_no_torch_to_give_trials_out(self, module: str) -> None:
        # Only those who train need it, and a search by Gaussian process, when one comes.
        program = f"import sys; sys.modules['torch'] = None; import {module}"
        imported = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert imported.returncode == 0, imported.stderr
