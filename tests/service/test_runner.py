import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from einlayers.theta import NAMED
from search.convergence import LEAST_OBSERVED
from search.proposals import PastTrial, propose
from search.racing import Racing
from search.samplers.registry import make_sampler
from search.sampling import Random, Tpe
from search.spec import Budget, Constraints, Resources, Space
from search.states import AttemptState, SearchState, TrialState
from search.stopping import Convergence
from service import rankings, repositories, searches, trials
from service.clock import now
from service.database import Database
from service.models import Reason, Trial
from service.runner import workspace_of
from service.settings import Settings
from tests.service.pools import CutOff, LocalPools
from tests.service.running import (
    COMPLETED,
    PROXY,
    attempt_states,
    cut,
    ending,
    next_runner,
    results,
    run,
    search_of,
    spec_of,
    states,
    submit,
    trials_of,
    turn_to_the_end,
)
from workers.pool import Event, LocalPool
from workers.workspace import Workspace

DIVERGING = replace(PROXY, base_lr=1000.0)


def test_tells_the_workers_every_directory_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"home": "a", "corpora_dir": "b", "checkpoints_dir": "c", "hub_dir": "d"}
    settings = Settings(**{name: Path(folder) for name, folder in names.items()})  # type: ignore[arg-type]  # all are paths
    expected = Workspace(
        cache_dir=tmp_path / "a", corpora_dir=tmp_path / "b", checkpoints_dir=tmp_path / "c", hub_dir=tmp_path / "d"
    )
    assert workspace_of(settings) == expected
    assert workspace_of(Settings()).hub_dir is None


class TestBudget:
    @pytest.mark.parametrize("sampler", [Random(), Tpe(startup_trials=3)], ids=["random", "tpe"])
    def test_of_trials_is_spent_exactly(
        self, sampler: Random | Tpe, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(6, sampler=sampler), corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == COMPLETED
        trials = trials_of(database, search_id)
        assert [trial.number for trial in trials] == list(range(6))
        assert all(trial.state is TrialState.COMPLETED for trial in trials)
        assert all(attempt_states(trial) == [AttemptState.ENDED] for trial in trials)
        assert len({trial.digest for trial in trials}) == len({trial.seed for trial in trials}) == 6

    @pytest.mark.parametrize("num_slots", [1, 3, 5])
    def test_of_trials_is_exact_under_parallelism(
        self, num_slots: int, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(7, concurrency=4), corpora_dir)
        run(database, LocalPools(workspace, num_slots))
        assert ending(database, search_id) == COMPLETED
        assert states(database, search_id) == ["COMPLETED"] * 7
        assert sorted(trial.finish_order or 0 for trial in trials_of(database, search_id)) == list(range(7))

    def test_is_not_spent_by_a_search_that_has_converged(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(50, convergence=Convergence(patience=3)), corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == (SearchState.COMPLETED, Reason.CONVERGED)
        losses = [trial.loss or 0.0 for trial in trials_of(database, search_id)]
        assert 4 <= len(losses) < 50
        assert losses.index(min(losses)) == len(losses) - 4

    def test_is_not_spent_where_nothing_is_expected_any_more(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        # No structure of this proxy is ten times as good as another.
        search_id = submit(database, spec_of(50, convergence=Convergence(min_improvement=0.9)), corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == (SearchState.COMPLETED, Reason.CONVERGED)
        assert len(trials_of(database, search_id)) == LEAST_OBSERVED

    def test_of_one_trial_is_one_trial(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(1, concurrency=4), corpora_dir)
        run(database, LocalPools(workspace, 4))
        assert states(database, search_id) == ["COMPLETED"]

    def test_is_spent_by_infeasible_structures_too(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(5, proxy=DIVERGING, sampler=Tpe(startup_trials=2)), corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == COMPLETED
        for trial in trials_of(database, search_id):
            assert (trial.state, trial.loss) == (TrialState.INFEASIBLE, None)
            assert "a model that knows nothing has 4.564" in str(trial.reason)

    def test_is_spent_by_failures_and_the_search_fails(
        self, database: Database, broken: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(2), corpora_dir)
        run(database, LocalPool(broken))
        assert ending(database, search_id) == (SearchState.FAILED, Reason.ALL_TRIALS_FAILED)
        for trial in trials_of(database, search_id):
            assert trial.state is TrialState.FAILED
            assert str(trial.reason).startswith("Traceback (most recent call last)")

    def test_once_spent_is_not_spent_again(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        submit(database, spec_of(2), corpora_dir)
        run(database, LocalPool(workspace))
        before = results(database)
        runner = next_runner(database, LocalPool(workspace))
        assert not runner.turn(0)
        assert not runner.turn(0)
        assert results(database) == before


class TestConcurrency:
    @pytest.mark.parametrize(("concurrency", "num_slots"), [(1, 4), (3, 5), (4, 2)])
    def test_of_a_search_is_kept_and_used(
        self, concurrency: int, num_slots: int, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        submit(database, spec_of(6, concurrency=concurrency), corpora_dir)
        pool = LocalPools(workspace, num_slots)
        run(database, pool)
        assert pool.busiest == min(concurrency, num_slots)

    def test_of_two_searches_is_shared(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        ids = [submit(database, spec_of(4, concurrency=4), corpora_dir) for _ in range(2)]
        pool = CutOff(workspace, 4)
        cut(database, pool)
        assert [states(database, search_id) for search_id in ids] == [["RUNNING"] * 2] * 2
        pool.power = True
        run(database, pool)
        assert [ending(database, search_id) for search_id in ids] == [COMPLETED] * 2

    def test_gives_the_next_slot_to_the_search_that_has_fewer(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        early = submit(database, spec_of(6, concurrency=2), corpora_dir)
        runner = next_runner(database, LocalPools(workspace, 2))
        runner.turn(0)
        late = submit(database, spec_of(2, concurrency=2), corpora_dir)
        runner.turn(0)
        assert [states(database, search_id) for search_id in (early, late)] == [
            ["RUNNING", "COMPLETED"],
            ["COMPLETED"],
        ]
        turn_to_the_end(runner)
        assert [ending(database, search_id) for search_id in (early, late)] == [COMPLETED] * 2

    def test_starts_what_waits_together_with_what_is_proposed(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(3, concurrency=3), corpora_dir)
        with database.write() as session:
            trials.enqueue(session, search_id, NAMED["kronecker"])
        cut(database, CutOff(workspace, 3))
        found = trials_of(database, search_id)
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
        search_id = submit(database, spec_of(1), corpora_dir)
        next_runner(database, LocalPools(workspace, 0, missing="no machine has 8 GPUs")).turn(0)
        search = search_of(database, search_id)
        assert (search.state, search.waiting_for) == (SearchState.QUEUED, "no machine has 8 GPUs")
        assert trials_of(database, search_id) == []
        next_runner(database, LocalPools(workspace, 0)).turn(0)
        assert search_of(database, search_id).waiting_for is None

    def test_ends_with_the_first_slot(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(1), corpora_dir)
        next_runner(database, LocalPools(workspace, 0, missing="no machine has 8 GPUs")).turn(0)
        cut(database, CutOff(workspace, 1))
        search = search_of(database, search_id)
        assert (search.state, search.waiting_for) == (SearchState.RUNNING, None)


class TestProposals:
    def test_start_with_the_seeds_in_their_order(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        space = Space(subspace="low-rank", seeds=("monarch", "dense", "btt"), constraints=Constraints(psi_max=0.9))
        search_id = submit(database, spec_of(5, space=space, concurrency=2), corpora_dir)
        run(database, LocalPools(workspace, 2))
        assert [trial.theta for trial in trials_of(database, search_id)[:3]] == [
            NAMED["monarch"],
            NAMED["dense"],
            NAMED["btt"],
        ]
        for trial in trials_of(database, search_id)[3:]:
            assert trial.family == "low-rank"
            assert trial.psi <= 0.9

    def test_of_replicates_are_one_structure_from_other_seeds(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(5, replicates=2, concurrency=3), corpora_dir)
        run(database, LocalPools(workspace, 3))
        trials = trials_of(database, search_id)
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
        ids = [submit(database, spec_of(4, replicates=2), corpora_dir) for _ in range(2)]
        run(database, LocalPool(workspace))
        first, second = ([trial.loss for trial in trials_of(database, search_id)] for search_id in ids)
        assert first == second
        assert len(set(first)) == 4

    def test_that_run_out_end_the_search_once_all_trials_have_ended(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        space = Space(subspace="low-rank", seeds=("low-rank",))
        spec = spec_of(50, proxy=replace(PROXY, width=8), space=space, concurrency=2)
        search_id = submit(database, spec, corpora_dir)
        run(database, LocalPools(workspace, 2))
        assert ending(database, search_id) == (SearchState.COMPLETED, Reason.SPACE_EXHAUSTED)
        trials = trials_of(database, search_id)
        # The rank of a layer of width 8 is 1 to 8, of the wide layers as of the narrow ones.
        assert 1 < len(trials) <= 8
        assert all(trial.state is TrialState.COMPLETED for trial in trials)

    @pytest.mark.parametrize(
        "asked",
        [
            {"sampler": Random(seed=3), "replicates": 2},
            {"sampler": Tpe(seed=3, startup_trials=2), "replicates": 2},
            {"sampler": Tpe(seed=3, startup_trials=2), "racing": Racing(sd=0.2)},
        ],
        ids=["random", "tpe", "racing"],
    )
    def test_can_be_recomputed_from_the_rows(
        self, asked: dict[str, object], database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        spec = spec_of(14, space=Space(seeds=("dense",)), concurrency=4, **asked)
        search_id = submit(database, spec, corpora_dir)
        pool = CutOff(workspace, 3)
        cut(database, pool)
        pool.power = True
        pool.lose("slot 1")
        run(database, pool)
        trials = trials_of(database, search_id)
        assert [trial.finish_order for trial in trials] != list(range(14))
        assert len({trial.history_size for trial in trials}) > 5
        assert any(trial.replicate for trial in trials)
        read = search_of(database, search_id).spec
        for trial in trials:
            proposal = propose(read, _history_of(trial, trials), lambda: make_sampler(read.sampler, read.cube))
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


class TestTime:
    def test_that_is_over_stops_what_runs_and_starts_nothing(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        spec = spec_of(2, budget=Budget(max_seconds=1000), concurrency=3)
        search_id = submit(database, spec, corpora_dir)
        runner = next_runner(database, LocalPools(workspace, 3))
        runner.turn(0)
        assert states(database, search_id) == ["RUNNING", "RUNNING", "COMPLETED"]
        with database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            search.state_since = now(session) - timedelta(seconds=1000)
        turn_to_the_end(runner)
        assert ending(database, search_id) == (SearchState.COMPLETED, Reason.BUDGET_SECONDS)
        assert states(database, search_id) == ["CANCELLED", "CANCELLED", "COMPLETED"]

    def test_in_a_pause_does_not_count(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(2, budget=Budget(max_trials=2, max_seconds=1000)), corpora_dir)
        runner = next_runner(database, LocalPools(workspace, 1))
        runner.turn(0)
        with database.write() as session:
            searches.pause(session, search_id)
        with database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            search.state_since = now(session) - timedelta(seconds=5000)
        with database.write() as session:
            assert searches.resume(session, search_id).seconds < 1000
        turn_to_the_end(runner)
        assert ending(database, search_id) == COMPLETED


class TestCompute:
    @pytest.mark.parametrize("num_slots", [1, 4])
    def test_is_never_more_than_the_budget(
        self, num_slots: int, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        budget = Budget(max_train_flops=3.9 * PROXY.train_flops)
        search_id = submit(database, spec_of(1, budget=budget, concurrency=4), corpora_dir)
        run(database, LocalPools(workspace, num_slots))
        assert ending(database, search_id) == (SearchState.COMPLETED, Reason.BUDGET_TRAIN_FLOPS)
        assert states(database, search_id) == ["COMPLETED"] * 3
        assert search_of(database, search_id).train_flops == 3 * PROXY.train_flops


class TestExtension:
    @pytest.mark.parametrize("budget", [Budget(max_trials=5), Budget(max_train_flops=5 * PROXY.train_flops)])
    def test_while_it_runs_is_spent_exactly(
        self, budget: Budget, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(2, concurrency=4), corpora_dir)
        runner = next_runner(database, LocalPools(workspace, 4))
        runner.turn(0)
        assert states(database, search_id) == ["RUNNING", "COMPLETED"]
        with database.write() as session:
            searches.extend(session, search_id, budget)
        turn_to_the_end(runner)
        assert states(database, search_id) == ["COMPLETED"] * 5
        assert search_of(database, search_id).state is SearchState.COMPLETED


class TestFailures:
    def test_that_are_too_many_end_the_search(self, database: Database, broken: Workspace, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(9, budget=Budget(max_trials=9, max_failures=2)), corpora_dir)
        run(database, LocalPool(broken))
        assert ending(database, search_id) == (SearchState.FAILED, Reason.TOO_MANY_FAILURES)
        assert states(database, search_id) == ["FAILED"] * 2


class TestUsersTrial:
    def test_runs_first_and_within_the_budget(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(3), corpora_dir)
        with database.write() as session:
            trials.enqueue(session, search_id, NAMED["kronecker"])
        run(database, LocalPool(workspace))
        found = trials_of(database, search_id)
        assert [trial.origin for trial in found] == ["user", "search", "search"]
        assert found[0].theta == NAMED["kronecker"]
        assert [trial.state for trial in found] == [TrialState.COMPLETED] * 3

    def test_that_comes_while_a_proposal_is_made_is_not_overwritten(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(3), corpora_dir)

        class Meanwhile(LocalPool):
            """A slot beside which, just as it is reserved for the first trial, a user adds one."""

            added = False

            def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
                if not self.added:
                    self.added = True
                    with database.write() as session:
                        trials.enqueue(session, search_id, NAMED["kronecker"])
                return super().reserve(resources, wanted=wanted)

        run(database, Meanwhile(workspace))
        found = trials_of(database, search_id)
        assert [(trial.number, trial.origin) for trial in found] == [(0, "user"), (1, "search"), (2, "search")]


class TestTurns:
    def test_are_taken_by_all_searches_where_there_are_fewer_slots(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        ids = [submit(database, spec_of(3), corpora_dir) for _ in range(3)]
        run(database, LocalPool(workspace))
        attempts = [
            attempt for search_id in ids for trial in trials_of(database, search_id) for attempt in trial.attempts
        ]
        order = [attempt.trial_id.split("-") for attempt in sorted(attempts, key=lambda each: each.started_at)]
        assert order == [[search_id, str(number)] for number in range(3) for search_id in ids]


class TestRun:
    def test_takes_no_turn_once_told_to_stop(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(1), corpora_dir)
        stop = threading.Event()
        stop.set()
        next_runner(database, LocalPool(workspace)).run(stop)
        assert search_of(database, search_id).state is SearchState.QUEUED

    def test_takes_turns_until_told_to_stop(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(3), corpora_dir)
        stop = threading.Event()

        class StopsAtTheEnd(LocalPool):
            """A slot after whose third trial the runner is told to stop."""

            num_waits = 0

            def wait(self, timeout: float) -> Sequence[Event]:
                self.num_waits += 1
                if self.num_waits == 4:
                    stop.set()
                return super().wait(timeout)

        next_runner(database, StopsAtTheEnd(workspace)).run(stop)
        assert states(database, search_id) == ["COMPLETED"] * 3
