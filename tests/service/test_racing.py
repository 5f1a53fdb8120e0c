"""Searches that race, carried out turn by turn."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from search.racing import Racing
from search.sampling import Grid
from search.spec import Budget
from search.states import SearchState, TrialState
from service import comparisons, rankings
from service.database import Database
from service.models import Reason
from service.rankings import RankedStructure
from tests.service.invariants import check
from tests.service.plain_rows import plain_fidelity
from tests.service.pools import LocalPools
from tests.service.running import COMPLETED, PROXY, ending, run, search_of, spec_of, submit, trials_of
from workers.workspace import Workspace


def best_of(database: Database, search_id: str) -> Sequence[RankedStructure]:
    with database.read() as session:
        return rankings.best(session, search_id, 500)


class TestRace:
    @pytest.mark.parametrize(("concurrency", "max_trials"), [(1, 12), (4, 12), (3, 4), (4, 4)])
    def test_puts_no_single_seed_first(
        self, concurrency: int, max_trials: int, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        spec = spec_of(max_trials, racing=Racing(), concurrency=concurrency)
        search_id = submit(database, spec, corpora_dir)
        run(database, LocalPools(workspace, concurrency))
        assert ending(database, search_id) == COMPLETED
        check(database, search_id)
        times = Counter(trial.digest for trial in trials_of(database, search_id))
        assert max(times.values()) <= 3
        assert len(times) >= max_trials / 2
        best = best_of(database, search_id)
        assert len(best[0].replicates) >= 2
        assert len(best) == len(times)
        with database.read() as session:
            confidence = comparisons.confidence(session, search_id)
        assert confidence is not None
        assert 0 < confidence <= 1

    def test_ends_a_list_of_structures_with_its_contenders(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        spec = spec_of(100, sampler=Grid(designs="named"), racing=Racing(sd=0.001), concurrency=3)
        search_id = submit(database, spec, corpora_dir)
        run(database, LocalPools(workspace, 3))
        assert ending(database, search_id) == (SearchState.COMPLETED, Reason.SPACE_EXHAUSTED)
        times = Counter(trial.digest for trial in trials_of(database, search_id))
        best = best_of(database, search_id)
        assert times[best[0].trial.digest] >= 2
        assert best[-1].trial.state is TrialState.COMPLETED
        assert times[best[-1].trial.digest] == 1

    def test_has_what_is_left_of_a_budget_of_time(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        spec = replace(spec_of(1, racing=Racing()), budget=Budget(max_seconds=10**6, max_trials=9))
        search_id = submit(database, spec, corpora_dir)
        run(database, LocalPools(workspace, 1))
        assert len(best_of(database, search_id)[0].replicates) >= 2


class TestNoise:
    def test_is_that_of_the_study_at_the_time_of_the_submission(self, database: Database, corpora_dir: Path) -> None:
        before = submit(database, spec_of(4, racing=Racing()), corpora_dir)
        with database.write() as session:
            session.add(plain_fidelity("a", PROXY, 0.125))
            session.add(plain_fidelity("b", replace(PROXY, train_flops=2e6), 0.25))
        after, stated, single = (
            submit(database, spec_of(4, racing=racing), corpora_dir) for racing in (Racing(), Racing(sd=0.5), None)
        )
        found = {search_id: search_of(database, search_id).spec.racing for search_id in (before, after, stated, single)}
        assert found == {before: Racing(), after: Racing(sd=0.125), stated: Racing(sd=0.5), single: None}

    def test_that_a_study_did_not_find_is_unknown(self, database: Database, corpora_dir: Path) -> None:
        with database.write() as session:
            session.add(plain_fidelity("a", PROXY, 0.0))
        search_id = submit(database, spec_of(4, racing=Racing()), corpora_dir)
        assert search_of(database, search_id).spec.racing == Racing()
