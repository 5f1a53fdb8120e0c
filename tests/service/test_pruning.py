"""Searches that stop trials early, carried out turn by turn."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from einlayers.theta import NAMED
from search.spec import Budget, SearchSpec
from search.states import AttemptState, TrialState
from search.stopping import Extrapolation, MedianRule, SuccessiveHalving
from service import rankings, repositories, trials
from service.database import Database
from service.models import Reason, Trial
from tests.service import running
from tests.service.pools import SteppingPool
from tests.service.running import (
    COMPLETED,
    attempt_states,
    ending,
    next_runner,
    run,
    search_of,
    submit,
    trials_of,
)
from workers.workspace import Workspace

PROXY = replace(running.PROXY, train_flops=3e7)
"""Some thirty steps, so that the learning curve has all of its points."""

HALVING = SuccessiveHalving(startup_structures=2, min_share=1 / 4)


def spec_of(max_trials: int, **changes: object) -> SearchSpec:
    return running.spec_of(max_trials, proxy=PROXY, **changes)


def pruned_of(database: Database, search_id: str) -> list[Trial]:
    return [trial for trial in trials_of(database, search_id) if trial.state is TrialState.PRUNED]


@pytest.fixture
def pool(workspace: Workspace) -> SteppingPool:
    return SteppingPool(workspace)


class TestPruning:
    def test_stops_trials_and_pays_for_what_they_used(
        self, database: Database, pool: SteppingPool, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(8, pruner=HALVING), corpora_dir)
        run(database, pool)
        assert ending(database, search_id) == COMPLETED
        trials, pruned = trials_of(database, search_id), pruned_of(database, search_id)
        assert 0 < len(pruned) < 6
        assert {trial.state for trial in trials} == {TrialState.COMPLETED, TrialState.PRUNED}
        for trial in pruned:
            assert trial.number >= 2
            assert (trial.loss, attempt_states(trial)) == (None, [AttemptState.ENDED])
            assert trial.reason is not None
            assert "of its compute with a loss of" in trial.reason
            assert trial.expected_loss is not None
            assert 0.2 * PROXY.train_flops < trial.train_flops < 0.6 * PROXY.train_flops
        assert search_of(database, search_id).train_flops == pytest.approx(sum(trial.train_flops for trial in trials))

    def test_draws_curves_on_from_what_is_stored_of_them(
        self, database: Database, pool: SteppingPool, corpora_dir: Path
    ) -> None:
        pruner = Extrapolation(startup_structures=3, margin=0.5)
        search_id = submit(database, spec_of(12, pruner=pruner), corpora_dir)
        run(database, pool)
        assert ending(database, search_id) == COMPLETED
        trials, pruned = trials_of(database, search_id), pruned_of(database, search_id)
        assert pruned
        for trial in pruned:
            assert trial.number >= 3
            found = re.search(
                r"expected to end at ([\d.]+), and hardly below ([\d.]+), where .* has ([\d.]+)$", trial.reason or ""
            )
            assert found is not None
            expected, hoped, best = map(float, found.groups())
            assert expected == pytest.approx(trial.expected_loss, rel=1e-3)
            assert best < hoped < expected
            assert f"{best:.4g}" in {f"{other.loss:.4g}" for other in trials if other.loss is not None}

    def test_shows_samplers_the_loss_that_was_expected_and_nobody_else(
        self, database: Database, pool: SteppingPool, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(8, pruner=HALVING), corpora_dir)
        run(database, pool)
        expected = {trial.number: trial.expected_loss for trial in pruned_of(database, search_id)}
        assert expected
        with database.read() as session:
            seen = dict(repositories.history(session, search_id))
            best = rankings.best(session, search_id, 100)
        assert {number: seen[number].loss for number in expected} == expected
        assert {ranked.trial.state for ranked in best} == {TrialState.COMPLETED}
        assert len(best) == 8 - len(expected)

    def test_makes_room_for_more_trials_in_a_budget_of_compute(
        self, database: Database, pool: SteppingPool, corpora_dir: Path
    ) -> None:
        budget = Budget(max_train_flops=6 * PROXY.train_flops)
        search_id = submit(database, replace(spec_of(1, pruner=HALVING), budget=budget), corpora_dir)
        run(database, pool)
        assert ending(database, search_id)[1] is Reason.BUDGET_TRAIN_FLOPS
        search = search_of(database, search_id)
        assert search.num_trials > 6
        assert 5 * PROXY.train_flops < search.train_flops <= 6 * PROXY.train_flops
        assert search.max_trials == search.num_trials

    def test_leaves_alone_what_users_asked_for(self, database: Database, pool: SteppingPool, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(6, pruner=MedianRule(startup_structures=1, min_share=1 / 16)), corpora_dir)
        with database.write() as session:
            asked = [trials.enqueue(session, search_id, NAMED[name]).number for name in ("kronecker", "low-rank")]
        run(database, pool)
        found = trials_of(database, search_id)
        assert all(found[number].state is TrialState.COMPLETED for number in asked)
        assert pruned_of(database, search_id)

    def test_gives_up_replicates_of_what_two_seeds_are_bad_at(
        self, database: Database, pool: SteppingPool, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(15, pruner=HALVING, replicates=3), corpora_dir)
        run(database, pool)
        pruned = pruned_of(database, search_id)
        assert pruned
        for trial in pruned:
            assert trial.replicate >= 1
            assert trial.digest not in {
                other.digest for other in trials_of(database, search_id) if other.replicate > trial.replicate
            }

    def test_is_carried_out_by_the_runner_that_takes_over(
        self, database: Database, pool: SteppingPool, corpora_dir: Path
    ) -> None:
        class Deaf(SteppingPool):
            """Does not hear of stops, as of a runner that dies before it tells."""

            def stop(self, key: str) -> None:
                pass

        search_id = submit(database, spec_of(8, pruner=HALVING), corpora_dir)
        pool.__class__ = Deaf
        runner = next_runner(database, pool)
        while not any(
            attempt.is_to_be_pruned for trial in trials_of(database, search_id) for attempt in trial.attempts
        ):
            assert runner.turn(0)
        pool.__class__ = SteppingPool
        run(database, pool)
        assert ending(database, search_id) == COMPLETED
        assert [len(trial.attempts) for trial in trials_of(database, search_id)] == [1] * 8
        assert pruned_of(database, search_id)
