from pathlib import Path

import pytest

from search.states import AttemptState, SearchState, TrialState
from service import searches
from service.database import Database
from service.models import Reason
from tests.service.pools import CutOff, LocalPools
from tests.service.running import (
    COMPLETED,
    attempt_states,
    cut,
    ending,
    next_runner,
    run,
    search_of,
    spec_of,
    states,
    submit,
    trials_of,
    turn_to_the_end,
)
from workers.pool import LocalPool
from workers.workspace import Workspace


class TestCancel:
    def test_stops_what_runs_and_keeps_what_completed(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(9, concurrency=3), corpora_dir)
        runner = next_runner(database, LocalPools(workspace, 3))
        runner.turn(0)
        assert states(database, search_id) == ["RUNNING", "RUNNING", "COMPLETED"]
        with database.write() as session:
            searches.cancel(session, search_id)
        turn_to_the_end(runner)
        assert ending(database, search_id) == (SearchState.CANCELLED, Reason.USER)
        cancelled, also, completed = trials_of(database, search_id)
        assert completed.state is TrialState.COMPLETED
        assert completed.loss is not None
        for trial in (cancelled, also):
            assert (trial.state, trial.reason, trial.loss) == (TrialState.CANCELLED, "stopped on request", None)
            assert attempt_states(trial) == [AttemptState.CANCELLED]

    @pytest.mark.parametrize("paused", [False, True])
    def test_of_a_search_that_never_ran_leaves_no_trial(
        self, paused: bool, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(9), corpora_dir)
        with database.write() as session:
            if paused:
                searches.pause(session, search_id)
            searches.cancel(session, search_id)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == (SearchState.CANCELLED, Reason.USER)
        assert trials_of(database, search_id) == []

    def test_drops_a_trial_that_waits_for_another_slot(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(9), corpora_dir)
        cut(database, CutOff(workspace, 1))
        runner = next_runner(database, LocalPools(workspace, 0))
        runner.turn(0)
        assert states(database, search_id) == ["PROPOSED"]
        with database.write() as session:
            searches.cancel(session, search_id)
        turn_to_the_end(runner)
        (trial,) = trials_of(database, search_id)
        assert (trial.state, trial.reason) == (TrialState.CANCELLED, "the search was stopped")
        assert attempt_states(trial) == [AttemptState.LOST]
        assert ending(database, search_id) == (SearchState.CANCELLED, Reason.USER)

    def test_of_a_search_whose_slots_are_lost_ends_too(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(9), corpora_dir)
        cut(database, CutOff(workspace, 1))
        with database.write() as session:
            searches.cancel(session, search_id)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == (SearchState.CANCELLED, Reason.USER)
        assert states(database, search_id) == ["CANCELLED"]

    def test_leaves_other_searches_alone(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        cancelled, other = (submit(database, spec_of(3), corpora_dir) for _ in range(2))
        runner = next_runner(database, LocalPools(workspace, 2))
        runner.turn(0)
        with database.write() as session:
            searches.cancel(session, cancelled)
        turn_to_the_end(runner)
        assert ending(database, cancelled) == (SearchState.CANCELLED, Reason.USER)
        assert ending(database, other) == COMPLETED


class TestPause:
    def test_starts_nothing_and_lets_end_what_runs(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(6, concurrency=3), corpora_dir)
        runner = next_runner(database, LocalPools(workspace, 3))
        runner.turn(0)
        with database.write() as session:
            searches.pause(session, search_id)
        for _ in range(5):
            runner.turn(0)
        assert states(database, search_id) == ["COMPLETED"] * 3
        assert search_of(database, search_id).runner_id is None
        assert ending(database, search_id) == (SearchState.PAUSED, Reason.USER)
        with database.write() as session:
            searches.resume(session, search_id)
        turn_to_the_end(runner)
        assert states(database, search_id) == ["COMPLETED"] * 6
        assert ending(database, search_id) == COMPLETED

    def test_of_a_search_whose_budget_is_spent_meanwhile_ends_after_it_is_resumed(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(2, concurrency=2), corpora_dir)
        runner = next_runner(database, LocalPools(workspace, 2))
        runner.turn(0)
        with database.write() as session:
            searches.pause(session, search_id)
        runner.turn(0)
        assert states(database, search_id) == ["COMPLETED"] * 2
        assert ending(database, search_id) == (SearchState.PAUSED, Reason.USER)
        with database.write() as session:
            searches.resume(session, search_id)
        turn_to_the_end(runner)
        assert ending(database, search_id) == COMPLETED
        assert len(trials_of(database, search_id)) == 2

    def test_keeps_a_queued_search_from_starting(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(2), corpora_dir)
        with database.write() as session:
            searches.pause(session, search_id)
        run(database, LocalPool(workspace))
        assert trials_of(database, search_id) == []
        with database.write() as session:
            searches.resume(session, search_id)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == COMPLETED
