"""Searches that train what a plan lists."""

from dataclasses import replace
from pathlib import Path

import pytest

from einlayers.theta import NAMED
from search.plan import Plan, Run
from search.spec import Budget
from search.states import SearchState
from search.trial import TrialSpec
from service import trials
from service.database import Database
from service.errors import WrongState
from service.models import Reason
from tests.service.running import COMPLETED, PROXY, ending, run, spec_of, submit, trials_of
from workers.evaluate import evaluate
from workers.pool import LocalPool
from workers.workspace import Workspace

RUNS = (
    Run(theta=NAMED["dense"]),
    Run(theta=NAMED["monarch"], width=16, train_flops=2e6),
    Run(theta=NAMED["monarch"], base_lr=1e-4),
    Run(theta=NAMED["dense"]),
)


class TestPlan:
    def test_is_trained_as_it_is_written(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(4, sampler=Plan(runs=RUNS)), corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == COMPLETED
        found = trials_of(database, search_id)
        assert [trial.theta for trial in found] == [run.theta for run in RUNS]
        for trial, planned in zip(found, RUNS, strict=True):
            proxy = planned.on(PROXY)
            spec = TrialSpec(theta=trial.theta, proxy=proxy, width=proxy.width_for(trial.theta), seed=trial.seed)
            assert (trial.width, trial.train_flops, trial.base_lr) == (spec.width, proxy.train_flops, proxy.base_lr)
            assert trial.loss == evaluate(spec, workspace).loss
        assert len({trial.loss for trial in found}) == 4
        assert [trial.replicate for trial in found] == [0, 0, 0, 1]

    @pytest.mark.parametrize(
        ("budget", "num_trials", "reason"),
        [
            (Budget(max_trials=2), 2, Reason.BUDGET_TRIALS),
            (Budget(max_trials=9), 4, Reason.SPACE_EXHAUSTED),
            (Budget(max_seconds=600), 4, Reason.SPACE_EXHAUSTED),
        ],
    )
    def test_ends_with_its_budget_or_its_last_run(
        self,
        database: Database,
        workspace: Workspace,
        corpora_dir: Path,
        budget: Budget,
        num_trials: int,
        reason: Reason,
    ) -> None:
        spec = replace(spec_of(1, sampler=Plan(runs=RUNS)), budget=budget)
        search_id = submit(database, spec, corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == (SearchState.COMPLETED, reason)
        assert len(trials_of(database, search_id)) == num_trials

    def test_takes_no_trial_that_it_does_not_list(self, database: Database, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(4, sampler=Plan(runs=RUNS)), corpora_dir)
        with pytest.raises(WrongState, match="trains what its plan lists"), database.write() as session:
            trials.enqueue(session, search_id, NAMED["btt"])
        assert trials_of(database, search_id) == []
