import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from einlayers.theta import NAMED
from search.proposals import PastTrial, propose
from search.proxies import FileCorpus
from search.samplers.registry import make_sampler
from search.spec import Budget, Constraints, Random, Resources, SearchSpec, Space, Tpe
from search.states import AttemptState, SearchState, TrialState
from search.trial import Outcome
from service import leases, listings, rankings, repositories, searches, trials
from service.clock import now
from service.database import Database
from service.leases import LeaseLost
from service.listings import Filters
from service.models import Reason, Search, Trial
from service.models import Runner as RunnerRow
from service.paging import PageRequest
from service.runner import Runner
from service.trials import MAX_LOST_ATTEMPTS
from tests.rows import TINY, contents
from tests.service.pools import CutOff, LocalPools, PowerCut, SlowPools
from workers.pool import Assignment, Event, Finished, LocalPool, Pool
from workers.workspace import Workspace

PROXY = replace(TINY, corpus=FileCorpus(path="corpus.txt"))
DIVERGING = replace(PROXY, base_lr=1000.0)


@pytest.fixture
def workspace(tmp_path: Path, corpora_dir: Path) -> Workspace:
    return Workspace(cache_dir=tmp_path / "cache", corpora_dir=corpora_dir)


@pytest.fixture
def broken(tmp_path: Path, corpora_dir: Path) -> Workspace:
    """The workspace of a machine where every trial fails: its cache cannot be written."""
    (tmp_path / "file").touch()
    return Workspace(cache_dir=tmp_path / "file", corpora_dir=corpora_dir)


def _spec(max_trials: int, **changes: object) -> SearchSpec:
    spec = SearchSpec(name="test", budget=Budget(max_trials=max_trials), proxy=PROXY, sampler=Random(), concurrency=1)
    return replace(spec, **changes)  # type: ignore[arg-type]  # the fields of a spec


def _submit(database: Database, spec: SearchSpec, corpora_dir: Path) -> str:
    with database.write() as session:
        return searches.submit(session, spec, corpora_dir).search.id


def _results(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row but those of the runners, which beat."""
    return {table: found for table, found in contents(database).items() if table != "runners"}


def _runner(database: Database, pool: Pool) -> Runner:
    """A runner that comes after all earlier ones are gone and their leases over."""
    with database.write() as session:
        session.execute(update(RunnerRow).values(expires_at=now(session)))
        runner_id = leases.enrol(session, 60).id
    return Runner(database, pool, runner_id, 60)


def _run(database: Database, pool: Pool) -> None:
    """Take turns until no search is active."""
    _turn_to_the_end(_runner(database, pool))


def _turn_to_the_end(runner: Runner) -> None:
    for _ in range(300):
        if not runner.turn(0):
            return
    raise AssertionError("the searches do not end")


def _cut(database: Database, pool: Pool) -> None:
    """A runner that starts what it can and dies."""
    with pytest.raises(PowerCut):
        _runner(database, pool).turn(0)


def _search(database: Database, search_id: str) -> Search:
    with database.read() as session:
        return repositories.search_by_id(session, search_id)


def _ending(database: Database, search_id: str) -> tuple[SearchState, Reason | None]:
    search = _search(database, search_id)
    return search.state, search.reason


def _trials(database: Database, search_id: str) -> Sequence[Trial]:
    with database.read() as session:
        return listings.trials(session, search_id, PageRequest(size=500), Filters()).items


def _states(database: Database, search_id: str) -> list[str]:
    return [trial.state for trial in _trials(database, search_id)]


def _attempts(trial: Trial) -> list[str]:
    return [attempt.state for attempt in trial.attempts]


COMPLETED = (SearchState.COMPLETED, Reason.BUDGET_TRIALS)


class TestBudget:
    @pytest.mark.parametrize("sampler", [Random(), Tpe(startup_trials=3)], ids=["random", "tpe"])
    def test_of_trials_is_spent_exactly(
        self, sampler: Random | Tpe, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(6, sampler=sampler), corpora_dir)
        _run(database, LocalPool(workspace))
        assert _ending(database, search_id) == COMPLETED
        trials = _trials(database, search_id)
        assert [trial.number for trial in trials] == list(range(6))
        assert all(trial.state is TrialState.COMPLETED for trial in trials)
        assert all(_attempts(trial) == [AttemptState.ENDED] for trial in trials)
        assert len({trial.digest for trial in trials}) == len({trial.seed for trial in trials}) == 6

    @pytest.mark.parametrize("num_slots", [1, 3, 5])
    def test_of_trials_is_exact_under_parallelism(
        self, num_slots: int, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(7, concurrency=4), corpora_dir)
        _run(database, LocalPools(workspace, num_slots))
        assert _ending(database, search_id) == COMPLETED
        assert _states(database, search_id) == ["COMPLETED"] * 7
        assert sorted(trial.finish_order or 0 for trial in _trials(database, search_id)) == list(range(7))

    def test_of_one_trial_is_one_trial(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(1, concurrency=4), corpora_dir)
        _run(database, LocalPools(workspace, 4))
        assert _states(database, search_id) == ["COMPLETED"]

    def test_is_spent_by_infeasible_structures_too(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(5, proxy=DIVERGING, sampler=Tpe(startup_trials=2)), corpora_dir)
        _run(database, LocalPool(workspace))
        assert _ending(database, search_id) == COMPLETED
        for trial in _trials(database, search_id):
            assert (trial.state, trial.loss) == (TrialState.INFEASIBLE, None)
            assert "a model that knows nothing has 4.564" in str(trial.reason)

    def test_is_spent_by_failures_and_the_search_fails(
        self, database: Database, broken: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(2), corpora_dir)
        _run(database, LocalPool(broken))
        assert _ending(database, search_id) == (SearchState.FAILED, Reason.ALL_TRIALS_FAILED)
        for trial in _trials(database, search_id):
            assert trial.state is TrialState.FAILED
            assert str(trial.reason).startswith("Traceback (most recent call last)")

    def test_once_spent_is_not_spent_again(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        _submit(database, _spec(2), corpora_dir)
        _run(database, LocalPool(workspace))
        before = _results(database)
        runner = _runner(database, LocalPool(workspace))
        assert not runner.turn(0)
        assert not runner.turn(0)
        assert _results(database) == before


class TestConcurrency:
    @pytest.mark.parametrize(("concurrency", "num_slots"), [(1, 4), (3, 5), (4, 2)])
    def test_of_a_search_is_kept_and_used(
        self, concurrency: int, num_slots: int, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        _submit(database, _spec(6, concurrency=concurrency), corpora_dir)
        pool = LocalPools(workspace, num_slots)
        _run(database, pool)
        assert pool.busiest == min(concurrency, num_slots)

    def test_of_two_searches_is_shared(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        ids = [_submit(database, _spec(4, concurrency=4), corpora_dir) for _ in range(2)]
        pool = CutOff(workspace, 4)
        _cut(database, pool)
        assert [_states(database, search_id) for search_id in ids] == [["RUNNING"] * 2] * 2
        pool.power = True
        _run(database, pool)
        assert [_ending(database, search_id) for search_id in ids] == [COMPLETED] * 2

    def test_gives_the_next_slot_to_the_search_that_has_fewer(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        early = _submit(database, _spec(6, concurrency=2), corpora_dir)
        runner = _runner(database, LocalPools(workspace, 2))
        runner.turn(0)
        late = _submit(database, _spec(2, concurrency=2), corpora_dir)
        runner.turn(0)
        assert [_states(database, search_id) for search_id in (early, late)] == [
            ["RUNNING", "COMPLETED"],
            ["COMPLETED"],
        ]
        _turn_to_the_end(runner)
        assert [_ending(database, search_id) for search_id in (early, late)] == [COMPLETED] * 2

    def test_starts_what_waits_together_with_what_is_proposed(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(3, concurrency=3), corpora_dir)
        with database.write() as session:
            trials.enqueue(session, search_id, NAMED["kronecker"])
        _cut(database, CutOff(workspace, 3))
        found = _trials(database, search_id)
        assert [(trial.state, trial.origin) for trial in found] == [
            (TrialState.RUNNING, "user"),
            (TrialState.RUNNING, "search"),
            (TrialState.RUNNING, "search"),
        ]
        assert len({trial.digest for trial in found}) == 3


class TestWaiting:
    def test_says_what_the_cluster_lacks_and_stops_saying_so(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(1), corpora_dir)
        _runner(database, LocalPools(workspace, 0, missing="no machine has 8 GPUs")).turn(0)
        search = _search(database, search_id)
        assert (search.state, search.waiting_for) == (SearchState.QUEUED, "no machine has 8 GPUs")
        assert _trials(database, search_id) == []
        _runner(database, LocalPools(workspace, 0)).turn(0)
        assert _search(database, search_id).waiting_for is None

    def test_ends_with_the_first_slot(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(1), corpora_dir)
        _runner(database, LocalPools(workspace, 0, missing="no machine has 8 GPUs")).turn(0)
        _cut(database, CutOff(workspace, 1))
        search = _search(database, search_id)
        assert (search.state, search.waiting_for) == (SearchState.RUNNING, None)


class TestProposals:
    def test_start_with_the_seeds_in_their_order(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        space = Space(subspace="low-rank", seeds=("monarch", "dense", "btt"), constraints=Constraints(psi_max=0.9))
        search_id = _submit(database, _spec(5, space=space, concurrency=2), corpora_dir)
        _run(database, LocalPools(workspace, 2))
        assert [trial.theta for trial in _trials(database, search_id)[:3]] == [
            NAMED["monarch"],
            NAMED["dense"],
            NAMED["btt"],
        ]
        for trial in _trials(database, search_id)[3:]:
            assert trial.family == "low-rank"
            assert trial.psi <= 0.9

    def test_of_replicates_are_one_structure_from_other_seeds(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(5, replicates=2, concurrency=3), corpora_dir)
        _run(database, LocalPools(workspace, 3))
        trials = _trials(database, search_id)
        assert [trial.replicate for trial in trials] == [0, 1, 0, 1, 0]
        assert trials[0].digest == trials[1].digest
        assert trials[2].digest == trials[3].digest
        assert len({trial.digest for trial in trials}) == 3
        assert len({trial.seed for trial in trials}) == 5
        with database.read() as session:
            best = rankings.best(session, search_id, 10)
        assert sorted(len(ranked.replicates) for ranked in best) == [1, 2, 2]
        assert [ranked.loss for ranked in best] == sorted(ranked.loss for ranked in best)

    def test_of_replicates_give_other_losses_and_of_the_same_search_the_same(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        ids = [_submit(database, _spec(4, replicates=2), corpora_dir) for _ in range(2)]
        _run(database, LocalPool(workspace))
        first, second = ([trial.loss for trial in _trials(database, search_id)] for search_id in ids)
        assert first == second
        assert len(set(first)) == 4

    def test_that_run_out_end_the_search_once_all_trials_have_ended(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        space = Space(subspace="low-rank", seeds=("low-rank",))
        spec = _spec(50, proxy=replace(PROXY, width=8), space=space, concurrency=2)
        search_id = _submit(database, spec, corpora_dir)
        _run(database, LocalPools(workspace, 2))
        assert _ending(database, search_id) == (SearchState.COMPLETED, Reason.SPACE_EXHAUSTED)
        trials = _trials(database, search_id)
        # The rank of a layer of width 8 is 1 to 8, of the wide layers as of the narrow ones.
        assert 1 < len(trials) <= 8
        assert all(trial.state is TrialState.COMPLETED for trial in trials)

    @pytest.mark.parametrize("sampler", [Random(seed=3), Tpe(seed=3, startup_trials=2)], ids=["random", "tpe"])
    def test_can_be_recomputed_from_the_rows(
        self, sampler: Random | Tpe, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        spec = _spec(14, sampler=sampler, space=Space(seeds=("dense",)), replicates=2, concurrency=4)
        search_id = _submit(database, spec, corpora_dir)
        pool = CutOff(workspace, 3)
        _cut(database, pool)
        pool.power = True
        pool.lose("slot 1")
        _run(database, pool)
        trials = _trials(database, search_id)
        assert [trial.finish_order for trial in trials] != list(range(14))
        assert len({trial.history_size for trial in trials}) > 5
        read = _search(database, search_id).spec
        for trial in trials:
            proposal = propose(read, _history_of(trial, trials), lambda: make_sampler(read.sampler))
            assert proposal is not None
            assert proposal.number == trial.number
            assert proposal.replicate == trial.replicate
            assert proposal.seed == trial.seed
            assert proposal.history_size == trial.history_size
            assert proposal.structure.theta == trial.theta
            assert proposal.structure.digest == trial.digest


def _history_of(trial: Trial, trials: Sequence[Trial]) -> list[PastTrial]:
    """What the proposal of a trial saw: the trials before it, of which ``history_size`` had ended."""
    return [
        PastTrial(theta=past.theta, digest=past.digest, state=past.state, loss=past.loss)
        if past.finish_order is not None and past.finish_order < trial.history_size
        else PastTrial(theta=past.theta, digest=past.digest, state=TrialState.RUNNING, loss=None)
        for past in trials[: trial.number]
    ]


class TestCancel:
    def test_stops_what_runs_and_keeps_what_completed(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(9, concurrency=3), corpora_dir)
        runner = _runner(database, LocalPools(workspace, 3))
        runner.turn(0)
        assert _states(database, search_id) == ["RUNNING", "RUNNING", "COMPLETED"]
        with database.write() as session:
            searches.cancel(session, search_id)
        _turn_to_the_end(runner)
        assert _ending(database, search_id) == (SearchState.CANCELLED, Reason.USER)
        cancelled, also, completed = _trials(database, search_id)
        assert completed.state is TrialState.COMPLETED
        assert completed.loss is not None
        for trial in (cancelled, also):
            assert (trial.state, trial.reason, trial.loss) == (TrialState.CANCELLED, "stopped on request", None)
            assert _attempts(trial) == [AttemptState.CANCELLED]

    @pytest.mark.parametrize("paused", [False, True])
    def test_of_a_search_that_never_ran_leaves_no_trial(
        self, paused: bool, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(9), corpora_dir)
        with database.write() as session:
            if paused:
                searches.pause(session, search_id)
            searches.cancel(session, search_id)
        _run(database, LocalPool(workspace))
        assert _ending(database, search_id) == (SearchState.CANCELLED, Reason.USER)
        assert _trials(database, search_id) == []

    def test_drops_a_trial_that_waits_for_another_slot(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(9), corpora_dir)
        _cut(database, CutOff(workspace, 1))
        runner = _runner(database, LocalPools(workspace, 0))
        runner.turn(0)
        assert _states(database, search_id) == ["PROPOSED"]
        with database.write() as session:
            searches.cancel(session, search_id)
        _turn_to_the_end(runner)
        (trial,) = _trials(database, search_id)
        assert (trial.state, trial.reason) == (TrialState.CANCELLED, "the search was stopped")
        assert _attempts(trial) == [AttemptState.LOST]
        assert _ending(database, search_id) == (SearchState.CANCELLED, Reason.USER)

    def test_of_a_search_whose_slots_are_lost_ends_too(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(9), corpora_dir)
        _cut(database, CutOff(workspace, 1))
        with database.write() as session:
            searches.cancel(session, search_id)
        _run(database, LocalPool(workspace))
        assert _ending(database, search_id) == (SearchState.CANCELLED, Reason.USER)
        assert _states(database, search_id) == ["CANCELLED"]

    def test_leaves_other_searches_alone(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        cancelled, other = (_submit(database, _spec(3), corpora_dir) for _ in range(2))
        runner = _runner(database, LocalPools(workspace, 2))
        runner.turn(0)
        with database.write() as session:
            searches.cancel(session, cancelled)
        _turn_to_the_end(runner)
        assert _ending(database, cancelled) == (SearchState.CANCELLED, Reason.USER)
        assert _ending(database, other) == COMPLETED


class TestPause:
    def test_starts_nothing_and_lets_end_what_runs(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(6, concurrency=3), corpora_dir)
        runner = _runner(database, LocalPools(workspace, 3))
        runner.turn(0)
        with database.write() as session:
            searches.pause(session, search_id)
        for _ in range(5):
            runner.turn(0)
        assert _states(database, search_id) == ["COMPLETED"] * 3
        assert _search(database, search_id).runner_id is None
        assert _ending(database, search_id) == (SearchState.PAUSED, Reason.USER)
        with database.write() as session:
            searches.resume(session, search_id)
        _turn_to_the_end(runner)
        assert _states(database, search_id) == ["COMPLETED"] * 6
        assert _ending(database, search_id) == COMPLETED

    def test_of_a_search_whose_budget_is_spent_meanwhile_ends_after_it_is_resumed(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(2, concurrency=2), corpora_dir)
        runner = _runner(database, LocalPools(workspace, 2))
        runner.turn(0)
        with database.write() as session:
            searches.pause(session, search_id)
        runner.turn(0)
        assert _states(database, search_id) == ["COMPLETED"] * 2
        assert _ending(database, search_id) == (SearchState.PAUSED, Reason.USER)
        with database.write() as session:
            searches.resume(session, search_id)
        _turn_to_the_end(runner)
        assert _ending(database, search_id) == COMPLETED
        assert len(_trials(database, search_id)) == 2

    def test_keeps_a_queued_search_from_starting(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(2), corpora_dir)
        with database.write() as session:
            searches.pause(session, search_id)
        _run(database, LocalPool(workspace))
        assert _trials(database, search_id) == []
        with database.write() as session:
            searches.resume(session, search_id)
        _run(database, LocalPool(workspace))
        assert _ending(database, search_id) == COMPLETED


class TestRestart:
    def test_with_other_slots_runs_what_was_lost_again(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(4, concurrency=2), corpora_dir)
        _cut(database, CutOff(workspace, 2))
        assert _states(database, search_id) == ["RUNNING"] * 2
        _runner(database, LocalPools(workspace, 0)).turn(0)
        for trial in _trials(database, search_id):
            assert trial.state is TrialState.PROPOSED
            assert _attempts(trial) == [AttemptState.LOST]
            assert trial.attempts[0].reason == "its slot does not know of it"
        _run(database, LocalPools(workspace, 2))
        assert _ending(database, search_id) == COMPLETED
        lost, again = [AttemptState.LOST, AttemptState.ENDED], [AttemptState.ENDED]
        assert [_attempts(trial) for trial in _trials(database, search_id)] == [lost, lost, again, again]

    def test_with_the_same_slots_takes_over_what_they_run(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(4, concurrency=2), corpora_dir)
        pool = CutOff(workspace, 2)
        _cut(database, pool)
        pool.power = True
        _run(database, pool)
        assert _ending(database, search_id) == COMPLETED
        assert [_attempts(trial) for trial in _trials(database, search_id)] == [[AttemptState.ENDED]] * 4

    def test_changes_no_result(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        spec = _spec(5, sampler=Tpe(startup_trials=2))
        calm = _submit(database, spec, corpora_dir)
        _run(database, LocalPool(workspace))
        restless = _submit(database, spec, corpora_dir)
        for _ in range(5):
            _cut(database, CutOff(workspace, 1))
            _runner(database, LocalPool(workspace)).turn(0)
        _run(database, LocalPool(workspace))
        assert _ending(database, restless) == COMPLETED
        assert [(trial.theta, trial.seed, trial.loss) for trial in _trials(database, restless)] == [
            (trial.theta, trial.seed, trial.loss) for trial in _trials(database, calm)
        ]
        assert all(len(trial.attempts) == 2 for trial in _trials(database, restless))

    def test_makes_what_the_old_slots_still_tell_worthless(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(2, concurrency=2), corpora_dir)
        old = CutOff(workspace, 2)
        _cut(database, old)
        _run(database, LocalPools(workspace, 2))
        assert _ending(database, search_id) == COMPLETED
        before = _results(database)
        old.power = True
        runner = _runner(database, old)
        while old.assignments():
            runner.turn(0)
        assert _results(database) == before

    def test_stops_what_slots_run_that_nobody_wants(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        _submit(database, _spec(1), corpora_dir)
        old = CutOff(workspace, 1)
        _cut(database, old)
        _run(database, LocalPool(workspace))
        old.power = True
        before = contents(database)["trials"]
        _runner(database, old).turn(0)
        assert old.assignments() == {}
        assert contents(database)["trials"] == before

    def test_gives_a_trial_up_that_loses_every_slot(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(1), corpora_dir)
        for _ in range(MAX_LOST_ATTEMPTS):
            _cut(database, CutOff(workspace, 1))
        _run(database, LocalPool(workspace))
        (trial,) = _trials(database, search_id)
        assert trial.state is TrialState.FAILED
        assert str(trial.reason).startswith(f"lost its slot {MAX_LOST_ATTEMPTS} times")
        assert _attempts(trial) == [AttemptState.LOST] * MAX_LOST_ATTEMPTS
        assert _ending(database, search_id) == (SearchState.FAILED, Reason.ALL_TRIALS_FAILED)


class TestLostSlot:
    def test_has_its_trial_run_again_on_another(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(3, concurrency=2), corpora_dir)
        pool = LocalPools(workspace, 2)
        runner = _runner(database, pool)
        runner.turn(0)
        assert _states(database, search_id) == ["RUNNING", "COMPLETED"]
        pool.lose("slot 0")
        _turn_to_the_end(runner)
        first, *others = _trials(database, search_id)
        assert (first.state, _attempts(first)) == (TrialState.COMPLETED, [AttemptState.LOST, AttemptState.ENDED])
        assert first.attempts[0].reason == "slot 0 is gone"
        assert [_attempts(trial) for trial in others] == [[AttemptState.ENDED]] * 2
        assert _ending(database, search_id) == COMPLETED

    def test_costs_no_trial_of_the_budget(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(3, concurrency=2), corpora_dir)
        pool = LocalPools(workspace, 2)
        runner = _runner(database, pool)
        for _ in range(MAX_LOST_ATTEMPTS - 1):
            runner.turn(0)
            pool.lose("slot 0")
        _turn_to_the_end(runner)
        assert _states(database, search_id) == ["COMPLETED"] * 3
        assert len(_trials(database, search_id)[0].attempts) > 2


class TestTime:
    def test_that_is_over_stops_what_runs_and_starts_nothing(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        spec = _spec(2, budget=Budget(max_seconds=1000), concurrency=3)
        search_id = _submit(database, spec, corpora_dir)
        runner = _runner(database, LocalPools(workspace, 3))
        runner.turn(0)
        assert _states(database, search_id) == ["RUNNING", "RUNNING", "COMPLETED"]
        with database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            search.state_since = now(session) - timedelta(seconds=1000)
        _turn_to_the_end(runner)
        assert _ending(database, search_id) == (SearchState.COMPLETED, Reason.BUDGET_SECONDS)
        assert _states(database, search_id) == ["CANCELLED", "CANCELLED", "COMPLETED"]

    def test_in_a_pause_does_not_count(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(2, budget=Budget(max_trials=2, max_seconds=1000)), corpora_dir)
        runner = _runner(database, LocalPools(workspace, 1))
        runner.turn(0)
        with database.write() as session:
            searches.pause(session, search_id)
        with database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            search.state_since = now(session) - timedelta(seconds=5000)
        with database.write() as session:
            assert searches.resume(session, search_id).seconds < 1000
        _turn_to_the_end(runner)
        assert _ending(database, search_id) == COMPLETED


class TestCompute:
    @pytest.mark.parametrize("num_slots", [1, 4])
    def test_is_never_more_than_the_budget(
        self, num_slots: int, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        budget = Budget(max_train_flops=3.9 * PROXY.train_flops)
        search_id = _submit(database, _spec(1, budget=budget, concurrency=4), corpora_dir)
        _run(database, LocalPools(workspace, num_slots))
        assert _ending(database, search_id) == (SearchState.COMPLETED, Reason.BUDGET_TRAIN_FLOPS)
        assert _states(database, search_id) == ["COMPLETED"] * 3
        assert _search(database, search_id).train_flops == 3 * PROXY.train_flops


class TestExtension:
    @pytest.mark.parametrize("budget", [Budget(max_trials=5), Budget(max_train_flops=5 * PROXY.train_flops)])
    def test_while_it_runs_is_spent_exactly(
        self, budget: Budget, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(2, concurrency=4), corpora_dir)
        runner = _runner(database, LocalPools(workspace, 4))
        runner.turn(0)
        assert _states(database, search_id) == ["RUNNING", "COMPLETED"]
        with database.write() as session:
            searches.extend(session, search_id, budget)
        _turn_to_the_end(runner)
        assert _states(database, search_id) == ["COMPLETED"] * 5
        assert _search(database, search_id).state is SearchState.COMPLETED


class TestFailures:
    def test_that_are_too_many_end_the_search(self, database: Database, broken: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(9, budget=Budget(max_trials=9, max_failures=2)), corpora_dir)
        _run(database, LocalPool(broken))
        assert _ending(database, search_id) == (SearchState.FAILED, Reason.TOO_MANY_FAILURES)
        assert _states(database, search_id) == ["FAILED"] * 2


class TestUsersTrial:
    def test_runs_first_and_within_the_budget(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(3), corpora_dir)
        with database.write() as session:
            trials.enqueue(session, search_id, NAMED["kronecker"])
        _run(database, LocalPool(workspace))
        found = _trials(database, search_id)
        assert [trial.origin for trial in found] == ["user", "search", "search"]
        assert found[0].theta == NAMED["kronecker"]
        assert [trial.state for trial in found] == [TrialState.COMPLETED] * 3

    def test_that_comes_while_a_proposal_is_made_is_not_overwritten(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(3), corpora_dir)

        class Meanwhile(LocalPool):
            """A slot beside which, just as it is reserved for the first trial, a user adds one."""

            added = False

            def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
                if not self.added:
                    self.added = True
                    with database.write() as session:
                        trials.enqueue(session, search_id, NAMED["kronecker"])
                return super().reserve(resources, wanted=wanted)

        _run(database, Meanwhile(workspace))
        found = _trials(database, search_id)
        assert [(trial.number, trial.origin) for trial in found] == [(0, "user"), (1, "search"), (2, "search")]


class TestSeveralRunners:
    def test_share_the_searches(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        ids = [_submit(database, _spec(2), corpora_dir) for _ in range(4)]
        first = _runner(database, LocalPools(workspace, 1))
        with database.write() as session:
            second = Runner(database, LocalPools(workspace, 1), leases.enrol(session, 60).id, 60)
        first.turn(0)
        second.turn(0)
        holders = [_search(database, search_id).runner_id for search_id in ids]
        assert sorted(map(str, holders)) == sorted([first.id, first.id, second.id, second.id])
        while first.turn(0) or second.turn(0):
            pass
        assert [_ending(database, search_id) for search_id in ids] == [COMPLETED] * 4
        assert [_states(database, search_id) for search_id in ids] == [["COMPLETED"] * 2] * 4

    def test_take_over_from_one_that_sleeps_and_it_does_no_harm_when_it_wakes(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(3, concurrency=2), corpora_dir)
        asleep = _runner(database, LocalPools(workspace, 2))
        asleep.turn(0)
        assert _states(database, search_id) == ["RUNNING", "COMPLETED"]
        _run(database, LocalPools(workspace, 2))
        assert _ending(database, search_id) == COMPLETED
        before = _results(database)
        for _ in range(3):
            asleep.turn(0)
        after = contents(database)
        assert [after[table] for table in ("searches", "trials", "events", "results")] == [
            before[table] for table in ("searches", "trials", "events", "results")
        ]

    def test_take_a_trial_back_that_another_one_had_adopted(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(1), corpora_dir)
        slots = SlowPools(workspace, 1)
        slots.works = False
        first = _runner(database, slots)
        first.turn(0)
        others = slots.for_another_runner()
        others.works = False
        second = _runner(database, others)
        second.turn(0)
        assert _trials(database, search_id)[0].attempts[0].runner_id == second.id
        with database.write() as session:
            leases.leave(session, second.id)
            leases.renew(session, first.id, 60, first.stats)
        slots.works = True
        _turn_to_the_end(first)
        (trial,) = _trials(database, search_id)
        assert (trial.state, _attempts(trial)) == (TrialState.COMPLETED, [AttemptState.ENDED])

    def test_find_out_in_the_middle_of_a_turn_that_their_lease_is_gone(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(3), corpora_dir)

        class FallsAsleep(LocalPool):
            """A slot whose runner sleeps through its lease between finding it and starting a trial on it."""

            def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
                with database.write() as session:
                    search = repositories.search_by_id(session, search_id, lock=True)
                    search.runner_id, search.epoch = leases.enrol(session, 60).id, search.epoch + 1
                return super().reserve(resources, wanted=wanted)

        runner = _runner(database, FallsAsleep(workspace))
        with pytest.raises(LeaseLost):
            runner.turn(0)
        assert _trials(database, search_id) == []
        assert not runner.turn(0)


class TestMemory:
    def test_that_ran_out_gets_the_trial_a_device_of_its_own(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(1), corpora_dir)
        asked: list[Resources] = []

        class Small(LocalPool):
            """A slot with too little memory for a trial that has not got the device to itself."""

            def alone(self, resources: Resources) -> Resources:
                return replace(resources, gpus=1.0)

            def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
                asked.append(resources)
                return super().reserve(resources, wanted=wanted)

            def wait(self, timeout: float) -> Sequence[Event]:
                if asked[-1].gpus:
                    return super().wait(timeout)
                keys, self._assignment = list(self.assignments()), None
                return [Finished(key=key, outcome=Outcome.out_of_memory("too big")) for key in keys]

        _run(database, Small(workspace))
        (trial,) = _trials(database, search_id)
        assert _attempts(trial) == [AttemptState.OUT_OF_MEMORY, AttemptState.ENDED]
        assert (trial.state, trial.alone) == (TrialState.COMPLETED, True)

    def test_that_one_trial_needs_is_not_given_to_the_others(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(3, concurrency=3), corpora_dir)
        with database.write() as session:
            waiting = [trials.enqueue(session, search_id, NAMED[name]) for name in ("kronecker", "btt", "monarch")]
            waiting[1].alone, waiting[1].search.num_retries = True, 1
        submitted: list[tuple[str, float]] = []

        class Sorted(LocalPools):
            """Slots of any shape that note with which resources a trial was started."""

            def alone(self, resources: Resources) -> Resources:
                return replace(resources, gpus=1.0)

            def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
                self.gpus = resources.gpus
                return super().reserve(resources, wanted=wanted)

            def submit(self, slot: str, assignment: Assignment) -> None:
                submitted.append((assignment.key, self.gpus))
                super().submit(slot, assignment)

        _run(database, Sorted(workspace, 3))
        assert submitted == [(f"{search_id}-{number}-1", gpus) for number, gpus in enumerate((0, 1, 0))]


class TestDatabaseThatIsAway:
    def test_loses_nothing_that_was_heard(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(2), corpora_dir)

        class Broken(Database):
            """A database that cannot be written while ``away``."""

            away = False

            @contextmanager
            def write(self) -> Iterator[Session]:
                if self.away:
                    raise OperationalError("COMMIT", {}, Exception("database or disk is full"))
                with super().write() as session:
                    yield session

        flaky = Broken(database.engine.url.render_as_string(hide_password=False))

        class GoesAway(LocalPool):
            """A slot whose end is heard just as the database goes away."""

            def wait(self, timeout: float) -> Sequence[Event]:
                events = super().wait(timeout)
                flaky.away = flaky.away or bool(events and not told)
                told.extend(events)
                return events

        told: list[Event] = []
        with database.write() as session:
            runner = Runner(flaky, GoesAway(workspace), leases.enrol(session, 60).id, 60)
        for _ in range(3):
            with pytest.raises(OperationalError):
                runner.turn(0)
        flaky.away = False
        _turn_to_the_end(runner)
        flaky.close()
        assert [_attempts(trial) for trial in _trials(database, search_id)] == [[AttemptState.ENDED]] * 2


class TestRun:
    def test_takes_no_turn_once_told_to_stop(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(1), corpora_dir)
        stop = threading.Event()
        stop.set()
        _runner(database, LocalPool(workspace)).run(stop)
        assert _search(database, search_id).state is SearchState.QUEUED

    def test_takes_turns_until_told_to_stop(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(3), corpora_dir)
        stop = threading.Event()

        class StopsAtTheEnd(LocalPool):
            """A slot after whose third trial the runner is told to stop."""

            num_waits = 0

            def wait(self, timeout: float) -> Sequence[Event]:
                self.num_waits += 1
                if self.num_waits == 4:
                    stop.set()
                return super().wait(timeout)

        _runner(database, StopsAtTheEnd(workspace)).run(stop)
        assert _states(database, search_id) == ["COMPLETED"] * 3
