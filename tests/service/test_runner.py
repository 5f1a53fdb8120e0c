import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from einlayers.theta import NAMED
from search.proposals import PastTrial, propose
from search.proxies import FileCorpus
from search.samplers.registry import make_sampler
from search.spec import Budget, Constraints, Random, SearchSpec, Space, Tpe
from search.states import AttemptState, SearchState, TrialState
from service import repositories, searches
from service.database import Database
from service.models import Search, StopReason, Trial
from service.repositories import PageRequest
from service.runner import Runner
from service.trials import MAX_LOST_ATTEMPTS
from tests.rows import TINY, contents
from tests.service.pools import CutOff, LocalPools, PowerCut
from workers.pool import Event, LocalPool, Pool
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


def _run(database: Database, pool: Pool) -> None:
    """Take turns until no search is active."""
    runner = Runner(database, pool)
    for _ in range(300):
        if not runner.turn(0):
            return
    raise AssertionError("the searches do not end")


def _cut(database: Database, pool: Pool) -> None:
    """A runner that starts what it can and dies."""
    with pytest.raises(PowerCut):
        Runner(database, pool).turn(0)


def _search(database: Database, search_id: str) -> Search:
    with database.read() as session:
        return repositories.search_by_id(session, search_id)


def _ending(database: Database, search_id: str) -> tuple[SearchState, StopReason | None]:
    search = _search(database, search_id)
    return search.state, search.reason


def _trials(database: Database, search_id: str) -> Sequence[Trial]:
    with database.read() as session:
        return repositories.trials(session, search_id, PageRequest(size=500)).items


def _states(database: Database, search_id: str) -> list[str]:
    return [trial.state for trial in _trials(database, search_id)]


def _attempts(trial: Trial) -> list[str]:
    return [attempt.state for attempt in trial.attempts]


COMPLETED = (SearchState.COMPLETED, StopReason.BUDGET_TRIALS)


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
        assert _ending(database, search_id) == (SearchState.FAILED, StopReason.ALL_TRIALS_FAILED)
        for trial in _trials(database, search_id):
            assert trial.state is TrialState.FAILED
            assert str(trial.reason).startswith("Traceback (most recent call last)")

    def test_once_spent_is_not_spent_again(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        _submit(database, _spec(2), corpora_dir)
        _run(database, LocalPool(workspace))
        before = contents(database)
        runner = Runner(database, LocalPool(workspace))
        assert not runner.turn(0)
        assert not runner.turn(0)
        assert contents(database) == before


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


class TestWaiting:
    def test_says_what_the_cluster_lacks_and_stops_saying_so(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(1), corpora_dir)
        Runner(database, LocalPools(workspace, 0, missing="no machine has 8 GPUs")).turn(0)
        search = _search(database, search_id)
        assert (search.state, search.waiting_for) == (SearchState.QUEUED, "no machine has 8 GPUs")
        assert _trials(database, search_id) == []
        Runner(database, LocalPools(workspace, 0)).turn(0)
        assert _search(database, search_id).waiting_for is None

    def test_ends_with_the_first_slot(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(1), corpora_dir)
        Runner(database, LocalPools(workspace, 0, missing="no machine has 8 GPUs")).turn(0)
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
            best = repositories.best(session, search_id, 10)
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
        assert _ending(database, search_id) == (SearchState.COMPLETED, StopReason.SPACE_EXHAUSTED)
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
        runner = Runner(database, LocalPools(workspace, 3))
        runner.turn(0)
        assert _states(database, search_id) == ["RUNNING", "RUNNING", "COMPLETED"]
        with database.write() as session:
            searches.cancel(session, search_id)
        while runner.turn(0):
            pass
        assert _ending(database, search_id) == (SearchState.CANCELLED, StopReason.USER)
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
        assert _ending(database, search_id) == (SearchState.CANCELLED, StopReason.USER)
        assert _trials(database, search_id) == []

    def test_drops_a_trial_that_waits_for_another_slot(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(9), corpora_dir)
        _cut(database, CutOff(workspace, 1))
        runner = Runner(database, LocalPool(workspace))
        assert _states(database, search_id) == ["PROPOSED"]
        with database.write() as session:
            searches.cancel(session, search_id)
        while runner.turn(0):
            pass
        (trial,) = _trials(database, search_id)
        assert (trial.state, trial.reason) == (TrialState.CANCELLED, "the search was cancelled")
        assert _attempts(trial) == [AttemptState.LOST]
        assert _ending(database, search_id) == (SearchState.CANCELLED, StopReason.USER)

    def test_of_a_search_whose_slots_are_lost_ends_too(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(9), corpora_dir)
        _cut(database, CutOff(workspace, 1))
        with database.write() as session:
            searches.cancel(session, search_id)
        _run(database, LocalPool(workspace))
        assert _ending(database, search_id) == (SearchState.CANCELLED, StopReason.USER)
        assert _states(database, search_id) == ["CANCELLED"]

    def test_leaves_other_searches_alone(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        cancelled, other = (_submit(database, _spec(3), corpora_dir) for _ in range(2))
        runner = Runner(database, LocalPools(workspace, 2))
        runner.turn(0)
        with database.write() as session:
            searches.cancel(session, cancelled)
        while runner.turn(0):
            pass
        assert _ending(database, cancelled) == (SearchState.CANCELLED, StopReason.USER)
        assert _ending(database, other) == COMPLETED


class TestPause:
    def test_starts_nothing_and_lets_end_what_runs(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(6, concurrency=3), corpora_dir)
        runner = Runner(database, LocalPools(workspace, 3))
        runner.turn(0)
        with database.write() as session:
            searches.pause(session, search_id)
        for _ in range(5):
            assert not runner.turn(0)
        assert _states(database, search_id) == ["COMPLETED"] * 3
        assert _ending(database, search_id) == (SearchState.PAUSED, None)
        with database.write() as session:
            searches.resume(session, search_id)
        while runner.turn(0):
            pass
        assert _states(database, search_id) == ["COMPLETED"] * 6
        assert _ending(database, search_id) == COMPLETED

    def test_of_a_search_whose_budget_is_spent_meanwhile_ends_after_it_is_resumed(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(2, concurrency=2), corpora_dir)
        runner = Runner(database, LocalPools(workspace, 2))
        runner.turn(0)
        with database.write() as session:
            searches.pause(session, search_id)
        runner.turn(0)
        assert _states(database, search_id) == ["COMPLETED"] * 2
        assert _ending(database, search_id) == (SearchState.PAUSED, None)
        with database.write() as session:
            searches.resume(session, search_id)
        while runner.turn(0):
            pass
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
        runner = Runner(database, LocalPools(workspace, 2))
        for trial in _trials(database, search_id):
            assert trial.state is TrialState.PROPOSED
            assert _attempts(trial) == [AttemptState.LOST]
            assert trial.attempts[0].reason == "no slot knew of it when the runner started"
        while runner.turn(0):
            pass
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
            Runner(database, LocalPool(workspace)).turn(0)
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
        before = contents(database)
        old.power = True
        runner = Runner(database, old)
        while old.assignments():
            runner.turn(0)
        assert contents(database) == before

    def test_stops_what_slots_run_that_nobody_wants(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        _submit(database, _spec(1), corpora_dir)
        old = CutOff(workspace, 1)
        _cut(database, old)
        _run(database, LocalPool(workspace))
        old.power = True
        Runner(database, old)
        (event,) = old.wait(0)
        assert "CANCELLED" in str(event)

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
        assert _ending(database, search_id) == (SearchState.FAILED, StopReason.ALL_TRIALS_FAILED)


class TestLostSlot:
    def test_has_its_trial_run_again_on_another(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = _submit(database, _spec(3, concurrency=2), corpora_dir)
        pool = LocalPools(workspace, 2)
        runner = Runner(database, pool)
        runner.turn(0)
        assert _states(database, search_id) == ["RUNNING", "COMPLETED"]
        pool.lose("slot 0")
        while runner.turn(0):
            pass
        first, *others = _trials(database, search_id)
        assert (first.state, _attempts(first)) == (TrialState.COMPLETED, [AttemptState.LOST, AttemptState.ENDED])
        assert first.attempts[0].reason == "slot 0 is gone"
        assert [_attempts(trial) for trial in others] == [[AttemptState.ENDED]] * 2
        assert _ending(database, search_id) == COMPLETED

    def test_costs_no_trial_of_the_budget(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(3, concurrency=2), corpora_dir)
        pool = LocalPools(workspace, 2)
        runner = Runner(database, pool)
        for _ in range(MAX_LOST_ATTEMPTS - 1):
            runner.turn(0)
            pool.lose("slot 0")
        while runner.turn(0):
            pass
        assert _states(database, search_id) == ["COMPLETED"] * 3
        assert len(_trials(database, search_id)[0].attempts) > 2


class TestRun:
    def test_takes_no_turn_once_told_to_stop(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = _submit(database, _spec(1), corpora_dir)
        stop = threading.Event()
        stop.set()
        Runner(database, LocalPool(workspace)).run(stop)
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

        Runner(database, StopsAtTheEnd(workspace)).run(stop)
        assert _states(database, search_id) == ["COMPLETED"] * 3
