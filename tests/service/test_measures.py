"""What a training step costs, from the objectives of a search to what its answers, its sampler and its pruner see of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from einlayers.theta import NAMED
from search.spec import Objective
from search.states import TrialState
from search.stopping import MedianRule
from search.trial import Outcome, Report, StepCost
from service import rankings, repositories
from service.database import Database
from service.models import Trial
from service.paging import PageRequest
from tests.rows import SPEC, TINY, Rows, point
from tests.service.running import COMPLETED, ending, run, spec_of, submit, trials_of
from workers.pool import LocalPool
from workers.workspace import Workspace

ASKED = (Objective(), Objective(metric="latency"), Objective(metric="peak_memory"))

MEASURED = replace(SPEC, objectives=ASKED, proxy=replace(TINY, width=64))

PRUNED = replace(MEASURED, pruner=MedianRule(startup_structures=1, min_share=1 / 4))

_BYTES_KEPT = 5 * 4
"""Of every parameter: itself, its average, its gradient, and two moments of Adam, in single precision."""


def costly(latency: float, peak_memory: int, *, loss: float = 1.0, step: int = 5) -> Report:
    """A point of the curve of a trial whose steps cost that."""
    return replace(point(step, loss), step_cost=StepCost(latency=latency, peak_memory=peak_memory))


def trial_of(database: Database, trial_id: str) -> Trial:
    with database.read() as session:
        return repositories.trial_by_id(session, trial_id)


def is_hopeless(database: Database, attempt_id: str) -> bool:
    """Whether an attempt is to be stopped early."""
    (attempt,) = trial_of(database, attempt_id.rpartition("-")[0]).attempts
    return attempt.is_to_be_pruned


class TestSearch:
    def test_that_minimises_them_has_them_measured(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(3, objectives=ASKED), corpora_dir)
        run(database, LocalPool(workspace))
        assert ending(database, search_id) == COMPLETED
        found = trials_of(database, search_id)
        for trial in found:
            assert trial.latency is not None
            assert 0 < trial.latency < 60
            assert trial.peak_memory is not None
            assert trial.peak_memory > _BYTES_KEPT * trial.params
        with database.read() as session:
            seen = [past for _, past in repositories.history(session, search_id)]
        assert [(past.latency, past.peak_memory) for past in seen] == [(t.latency, t.peak_memory) for t in found]

    def test_that_does_not_has_nothing_measured(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(2, objectives=(Objective(), Objective(metric="macs"))), corpora_dir)
        run(database, LocalPool(workspace))
        assert [(trial.latency, trial.peak_memory) for trial in trials_of(database, search_id)] == [(None, None)] * 2


class TestTrial:
    def test_has_them_from_its_first_report_on(self, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(MEASURED), NAMED["btt"])
        attempt_id = rows.attempt(trial_id)
        assert (trial_of(rows.database, trial_id).latency, trial_of(rows.database, trial_id).peak_memory) == (
            None,
            None,
        )
        rows.progress(attempt_id, costly(0.25, 2**40))
        trial = trial_of(rows.database, trial_id)
        assert (trial.state, trial.latency, trial.peak_memory) == (TrialState.RUNNING, 0.25, 2**40)

    @pytest.mark.parametrize(
        "outcome",
        [
            Outcome.completed(loss=1.0, curve=(costly(0.25, 7),)),
            Outcome.infeasible("it diverged", curve=(costly(0.25, 7),)),
            Outcome.checkpointed(curve=(costly(0.25, 7),)),
            Outcome.cancelled(curve=(costly(0.25, 7),)),
        ],
        ids=lambda outcome: outcome.kind,
    )
    def test_has_them_however_it_ends(self, outcome: Outcome, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(MEASURED), NAMED["btt"])
        rows.outcome(rows.attempt(trial_id), outcome)
        trial = trial_of(rows.database, trial_id)
        assert (trial.latency, trial.peak_memory) == (0.25, 7)

    def test_has_those_of_the_slot_that_it_ran_on_last(self, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(MEASURED), NAMED["btt"])
        first = rows.attempt(trial_id)
        rows.progress(first, costly(0.25, 7))
        rows.loss(first)
        rows.outcome(rows.attempt(trial_id), Outcome.completed(loss=1.0, curve=(costly(0.5, 8),)))
        trial = trial_of(rows.database, trial_id)
        assert (trial.latency, trial.peak_memory) == (0.5, 8)


class TestFront:
    def test_is_that_of_the_trials_that_were_measured(self, rows: Rows) -> None:
        search_id = rows.search(MEASURED)
        costs = {
            "dense": (1.0, 0.5, 10),
            "btt": (1.5, 0.25, 30),
            "monarch": (2.0, 0.75, 20),
            "low-rank": (0.5, None, 0),
        }
        for name, (loss, latency, peak_memory) in costs.items():
            measured = point(5, loss) if latency is None else costly(latency, peak_memory, loss=loss)
            trial_id = rows.trial(search_id, NAMED[name])
            rows.outcome(rows.attempt(trial_id), Outcome.completed(loss=loss, curve=(measured,)))

        def front(metrics: str) -> list[str]:
            found = rankings.pareto(rows.database, search_id, metrics, PageRequest(size=10))
            return [ranked.trial.family for ranked in found.items]

        assert front("loss,latency") == ["dense", "btt"]
        assert front("latency,peak_memory") == ["btt", "dense"]
        assert front("loss,peak_memory:max") == ["dense", "btt"]
        assert front("loss,macs")[0] == "low-rank"


class TestPruning:
    """At the half of their compute, beside a structure with a loss of 1 whose steps take half a second."""

    @pytest.fixture
    def search_id(self, rows: Rows) -> str:
        search_id = rows.search(PRUNED)
        rows.progress(rows.attempt(rows.trial(search_id, NAMED["dense"])), costly(0.5, 100))
        return search_id

    @pytest.mark.parametrize(
        ("latency", "peak_memory", "hopeless"),
        [(0.75, 200, True), (0.5, 100, True), (0.25, 200, False), (0.75, 99, False)],
    )
    def test_stops_what_is_worse_in_all_of_them(
        self, latency: float, peak_memory: int, hopeless: bool, search_id: str, rows: Rows
    ) -> None:
        attempt_id = rows.attempt(rows.trial(search_id, NAMED["btt"]))
        rows.progress(attempt_id, costly(latency, peak_memory, loss=2.0))
        assert is_hopeless(rows.database, attempt_id) == hopeless

    def test_does_not_judge_what_was_not_measured(self, search_id: str, rows: Rows) -> None:
        attempt_id = rows.attempt(rows.trial(search_id, NAMED["btt"]))
        rows.progress(attempt_id, point(5, 2.0))
        assert not is_hopeless(rows.database, attempt_id)

    def test_does_not_judge_by_what_was_not_measured(self, rows: Rows) -> None:
        search_id = rows.search(PRUNED)
        rows.progress(rows.attempt(rows.trial(search_id, NAMED["dense"])), point(5, 1.0))
        attempt_id = rows.attempt(rows.trial(search_id, NAMED["btt"]))
        rows.progress(attempt_id, costly(0.75, 200, loss=2.0))
        assert not is_hopeless(rows.database, attempt_id)
