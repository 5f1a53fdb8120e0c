from dataclasses import replace

import pytest
from sqlalchemy import select

from einlayers.theta import NAMED
from search.proposals import Proposal, training_seed
from search.spec import Budget
from search.states import AttemptState, IllegalTransition, SearchState, TrialState
from search.stopping import Convergence
from search.structure import structure_of
from search.trial import Outcome
from service import leases, rankings, repositories, trials
from service.database import Database
from service.errors import BudgetExhausted, WrongState
from service.leases import Lease, LeaseLost
from service.models import Attempt, Event, Origin, Reason, Search, Trial
from service.transitions import move_search
from service.trials import MAX_LOST_ATTEMPTS
from tests.rows import SPEC, TINY, Rows, contents, point

OUTCOMES = {
    TrialState.COMPLETED: Outcome.completed(loss=1.5, curve=(point(1), point(2)), seconds=3.0),
    TrialState.INFEASIBLE: Outcome.infeasible("it diverged", curve=(point(1), point(2)), seconds=3.0),
    TrialState.FAILED: Outcome.failed("a traceback"),
    TrialState.CANCELLED: Outcome.cancelled(curve=(point(1), point(2)), seconds=3.0),
}

ENDS = pytest.mark.parametrize("state", OUTCOMES)


@pytest.fixture
def search_id(rows: Rows) -> str:
    return rows.search()


@pytest.fixture
def trial_id(rows: Rows, search_id: str) -> str:
    return rows.trial(search_id, NAMED["btt"])


@pytest.fixture
def attempt_id(rows: Rows, trial_id: str) -> str:
    return rows.attempt(trial_id)


def _trial(database: Database, trial_id: str) -> Trial:
    with database.read() as session:
        return repositories.trial_by_id(session, trial_id)


def _search(database: Database, search_id: str) -> Search:
    with database.read() as session:
        return repositories.search_by_id(session, search_id)


def _attempt(database: Database, attempt_id: str) -> Attempt:
    with database.read() as session:
        attempt = repositories.attempt_by_id(session, attempt_id)
    assert attempt is not None
    return attempt


def _steps(database: Database, attempt_id: str) -> set[int]:
    with database.read() as session:
        return repositories.steps_measured(session, attempt_id)


class TestAdd:
    def test_writes_down_all_that_is_known_before_training(self, rows: Rows, search_id: str) -> None:
        structure = structure_of(NAMED["btt"], TINY)
        proposal = Proposal(
            number=0,
            replicate=0,
            structure=structure,
            proxy=replace(TINY, train_flops=2e6, base_lr=0.25),
            digest="d" * 32,
            seed=2**32 - 1,
            history_size=7,
        )
        with rows.database.write() as session:
            trial_id = trials.add(session, repositories.search_by_id(session, search_id, lock=True), proposal).id
        trial = _trial(rows.database, trial_id)
        assert trial_id == f"{search_id}-0"
        assert (trial.theta, trial.family, trial.width) == (structure.theta, "btt", structure.width)
        assert (trial.omega, trial.psi, trial.nu) == (
            structure.taxonomy.omega,
            structure.taxonomy.psi,
            structure.taxonomy.nu,
        )
        assert (trial.params, trial.macs) == (structure.cost.params, structure.cost.macs)
        assert (trial.seed, trial.history_size, trial.digest) == (2**32 - 1, 7, "d" * 32)
        assert (trial.state, trial.train_flops, trial.base_lr) == (TrialState.PROPOSED, 2e6, 0.25)
        assert (trial.loss, trial.reason, trial.finish_order, trial.finished_at) == (None, None, None, None)
        assert trial.attempts == []

    def test_knows_the_axes_of_its_layers(self, rows: Rows, trial_id: str) -> None:
        trial = _trial(rows.database, trial_id)
        assert {name: (dims.d_in, dims.d_out) for name, dims in trial.dims.items()} == {
            "attention": (trial.width, trial.width),
            "up": (trial.width, 4 * trial.width),
            "down": (4 * trial.width, trial.width),
        }


class TestStart:
    def test_makes_an_attempt_that_runs(self, rows: Rows, trial_id: str) -> None:
        attempt_id = rows.attempt(trial_id, "slot 3")
        attempt = _attempt(rows.database, attempt_id)
        assert attempt_id == f"{trial_id}-1"
        assert (attempt.number, attempt.slot, attempt.state) == (1, "slot 3", AttemptState.RUNNING)
        assert (attempt.finished_at, attempt.seconds, attempt.reason) == (None, None, None)
        assert attempt.trial.state is TrialState.RUNNING

    def test_of_a_running_trial_is_refused(self, rows: Rows, trial_id: str, attempt_id: str) -> None:
        before = contents(rows.database)
        with pytest.raises(IllegalTransition):
            rows.attempt(trial_id)
        assert contents(rows.database) == before

    @ENDS
    def test_of_a_trial_that_ended_is_refused(
        self, state: TrialState, rows: Rows, trial_id: str, attempt_id: str
    ) -> None:
        rows.outcome(attempt_id, OUTCOMES[state])
        before = contents(rows.database)
        with pytest.raises(IllegalTransition):
            rows.attempt(trial_id)
        assert contents(rows.database) == before


class TestProgress:
    def test_becomes_the_learning_curve(self, rows: Rows, attempt_id: str) -> None:
        rows.progress(attempt_id, point(1), point(2), point(4))
        assert _steps(rows.database, attempt_id) == {1, 2, 4}

    def test_that_is_told_twice_counts_once(self, rows: Rows, attempt_id: str) -> None:
        rows.progress(attempt_id, point(1, 1.0), point(1, 2.0))
        with rows.database.read() as session:
            assert [p.loss for p in repositories.measurements(session, f"{attempt_id.rpartition('-')[0]}")] == [1.0]

    def test_leaves_the_trial_running(self, rows: Rows, trial_id: str, attempt_id: str) -> None:
        rows.progress(attempt_id, point(1))
        assert _trial(rows.database, trial_id).state is TrialState.RUNNING

    def test_of_an_unknown_attempt_changes_nothing(self, rows: Rows, attempt_id: str) -> None:
        before = contents(rows.database)
        rows.progress(f"{attempt_id.rpartition('-')[0]}-7", point(1))
        assert contents(rows.database) == before


class TestOutcome:
    @ENDS
    def test_ends_the_trial_and_its_attempt(
        self, state: TrialState, rows: Rows, trial_id: str, attempt_id: str
    ) -> None:
        outcome = OUTCOMES[state]
        rows.outcome(attempt_id, outcome)
        trial, attempt = _trial(rows.database, trial_id), _attempt(rows.database, attempt_id)
        assert (trial.state, trial.loss, trial.reason) == (state, outcome.loss, outcome.reason)
        assert trial.finish_order == 0
        assert trial.finished_at is not None
        cancelled = state is TrialState.CANCELLED
        assert attempt.state is (AttemptState.CANCELLED if cancelled else AttemptState.ENDED)
        assert (attempt.reason, attempt.seconds) == (outcome.reason, outcome.seconds)
        assert attempt.finished_at is not None

    def test_brings_the_points_that_progress_did_not(self, rows: Rows, attempt_id: str) -> None:
        rows.progress(attempt_id, point(1))
        rows.outcome(attempt_id, Outcome.completed(loss=1.0, curve=(point(1), point(2), point(4))))
        assert _steps(rows.database, attempt_id) == {1, 2, 4}

    def test_takes_the_next_place_in_the_order_of_ends(self, rows: Rows, search_id: str) -> None:
        thetas = [NAMED[name] for name in ("dense", "monarch", "btt", "kronecker")]
        attempts = [rows.attempt(rows.trial(search_id, theta)) for theta in thetas]
        ends = [2, 0, 3, 1]
        for number, state in zip(ends, OUTCOMES, strict=True):
            rows.outcome(attempts[number], OUTCOMES[state])
        orders = [_trial(rows.database, f"{search_id}-{number}").finish_order for number in ends]
        assert orders == [0, 1, 2, 3]

    def test_of_a_completed_trial_does_not_overwrite_its_loss(self, rows: Rows, attempt_id: str) -> None:
        rows.outcome(attempt_id, Outcome.completed(loss=1.0, curve=(point(1),)))
        before = contents(rows.database)
        rows.outcome(attempt_id, Outcome.completed(loss=999.0, curve=(point(1, 999.0), point(2, 999.0))))
        assert contents(rows.database) == before

    @ENDS
    def test_that_comes_late_changes_nothing(self, state: TrialState, rows: Rows, attempt_id: str) -> None:
        rows.outcome(attempt_id, Outcome.infeasible("it diverged"))
        before = contents(rows.database)
        rows.outcome(attempt_id, OUTCOMES[state])
        rows.progress(attempt_id, point(8))
        rows.loss(attempt_id)
        assert contents(rows.database) == before

    @ENDS
    def test_of_an_attempt_that_was_given_up_is_kept_as_late_and_changes_nothing_else(
        self, state: TrialState, rows: Rows, trial_id: str, attempt_id: str
    ) -> None:
        rows.loss(attempt_id)
        second = rows.attempt(trial_id)
        before = contents(rows.database)
        rows.outcome(attempt_id, OUTCOMES[state])
        rows.progress(attempt_id, point(8))
        first = _attempt(rows.database, attempt_id)
        assert (first.state, first.late) == (AttemptState.LOST, OUTCOMES[state])
        assert first.late_at is not None
        after = contents(rows.database)
        assert {table: rows for table, rows in after.items() if table != "attempts"} == {
            table: rows for table, rows in before.items() if table != "attempts"
        }
        rows.outcome(attempt_id, Outcome.completed(loss=999.0))
        assert contents(rows.database) == after
        rows.outcome(second, Outcome.completed(loss=2.0))
        assert _trial(rows.database, trial_id).loss == 2.0

    def test_of_an_unknown_attempt_changes_nothing(self, rows: Rows, attempt_id: str) -> None:
        before = contents(rows.database)
        rows.outcome(f"{attempt_id.rpartition('-')[0]}-7", Outcome.completed(loss=1.0))
        assert contents(rows.database) == before


class TestLoss:
    def test_makes_the_trial_wait_for_its_next_attempt(self, rows: Rows, trial_id: str, attempt_id: str) -> None:
        rows.loss(attempt_id)
        attempt, trial = _attempt(rows.database, attempt_id), _trial(rows.database, trial_id)
        assert (attempt.state, attempt.reason) == (AttemptState.LOST, "the node is gone")
        assert attempt.finished_at is not None
        assert (trial.state, trial.finish_order, trial.finished_at) == (TrialState.PROPOSED, None, None)
        assert rows.attempt(trial_id) == f"{trial_id}-2"

    def test_of_too_many_slots_fails_the_trial(self, rows: Rows, trial_id: str) -> None:
        for number in range(1, MAX_LOST_ATTEMPTS + 1):
            assert _trial(rows.database, trial_id).state is TrialState.PROPOSED
            rows.loss(rows.attempt(trial_id), f"loss {number}")
        trial = _trial(rows.database, trial_id)
        assert (trial.state, trial.finish_order) == (TrialState.FAILED, 0)
        assert trial.reason == f"lost its slot {MAX_LOST_ATTEMPTS} times, the last time: loss {MAX_LOST_ATTEMPTS}"
        assert [attempt.state for attempt in trial.attempts] == [AttemptState.LOST] * MAX_LOST_ATTEMPTS


class TestOutOfMemory:
    OUTCOME = Outcome.out_of_memory("CUDA out of memory", curve=(point(1),), seconds=2.0)

    def test_runs_the_trial_once_more_alone(self, rows: Rows, search_id: str, trial_id: str, attempt_id: str) -> None:
        rows.outcome(attempt_id, self.OUTCOME)
        trial, attempt = _trial(rows.database, trial_id), _attempt(rows.database, attempt_id)
        assert (trial.state, trial.alone, trial.finish_order) == (TrialState.PROPOSED, True, None)
        assert str(trial.reason).startswith("ran out of memory, runs again alone: CUDA")
        assert (attempt.state, attempt.seconds) == (AttemptState.OUT_OF_MEMORY, 2.0)
        assert trial.search.num_retries == 1
        rows.outcome(rows.attempt(trial_id), Outcome.completed(loss=1.0))
        assert _trial(rows.database, trial_id).state is TrialState.COMPLETED

    def test_again_alone_makes_the_structure_infeasible(self, rows: Rows, trial_id: str, attempt_id: str) -> None:
        rows.outcome(attempt_id, self.OUTCOME)
        rows.outcome(rows.attempt(trial_id), self.OUTCOME)
        trial = _trial(rows.database, trial_id)
        assert trial.state is TrialState.INFEASIBLE
        assert str(trial.reason).startswith("does not fit into memory, not even alone on its device: CUDA")
        assert [attempt.state for attempt in trial.attempts] == [AttemptState.OUT_OF_MEMORY] * 2


class TestCheckpointed:
    def test_makes_the_trial_wait_and_counts_as_no_retry(self, rows: Rows, trial_id: str, attempt_id: str) -> None:
        rows.outcome(attempt_id, Outcome.checkpointed(curve=(point(1),), seconds=2.0))
        trial, attempt = _trial(rows.database, trial_id), _attempt(rows.database, attempt_id)
        assert (trial.state, trial.search.num_retries) == (TrialState.PROPOSED, 0)
        assert (attempt.state, attempt.seconds) == (AttemptState.CHECKPOINTED, 2.0)
        second = rows.attempt(trial_id)
        rows.outcome(second, replace(Outcome.completed(loss=1.0, seconds=5.0), resumed_step=7))
        assert _attempt(rows.database, second).resumed_step == 7


class TestFence:
    """A runner that slept through its lease, PRIOR_ART 3.1 and 3.2."""

    @ENDS
    def test_keeps_a_replaced_runner_from_ending_what_its_successor_runs(
        self, state: TrialState, rows: Rows, search_id: str, trial_id: str, attempt_id: str
    ) -> None:
        old = rows.lease(search_id)
        with rows.database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            search.runner_id, search.epoch = leases.enrol(session, 60).id, search.epoch + 1
            new = Lease.of(search)
        with rows.database.write() as session:
            trials.take_over(session, new, attempt_id)
        before = contents(rows.database)
        with rows.database.write() as session:
            trials.record_progress(session, old, attempt_id, point(1))
            trials.record_outcomes(session, old, {attempt_id: OUTCOMES[state]})
            trials.record_loss(session, old, attempt_id, "gone")
        assert contents(rows.database) == before
        with pytest.raises(LeaseLost), rows.database.write() as session:
            trials.take_over(session, old, attempt_id)
        rows.outcome(attempt_id, Outcome.completed(loss=1.0))
        assert _attempt(rows.database, attempt_id).epoch == new.epoch
        assert _trial(rows.database, trial_id).loss == 1.0

    def test_holds_for_the_same_runner_of_an_earlier_epoch(
        self, rows: Rows, search_id: str, trial_id: str, attempt_id: str
    ) -> None:
        old = rows.lease(search_id)
        with rows.database.write() as session:
            repositories.search_by_id(session, search_id, lock=True).epoch += 1
        before = contents(rows.database)
        with rows.database.write() as session:
            trials.record_outcomes(session, old, {attempt_id: Outcome.completed(loss=1.0)})
        assert contents(rows.database) == before


class TestFailures:
    def test_stop_the_search_once_there_are_too_many(self, rows: Rows) -> None:
        search_id = rows.search(replace(SPEC, budget=Budget(max_trials=10, max_failures=2)))
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["btt"])), Outcome.failed("a traceback"))
        assert _search(rows.database, search_id).state is SearchState.RUNNING
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["monarch"])), Outcome.failed("a traceback"))
        search = _search(rows.database, search_id)
        assert (search.state, search.reason) == (SearchState.STOPPING, Reason.TOO_MANY_FAILURES)

    def test_that_are_results_do_not_count(self, rows: Rows) -> None:
        search_id = rows.search(replace(SPEC, budget=Budget(max_trials=10, max_failures=1)))
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["btt"])), Outcome.infeasible("it diverged"))
        assert _search(rows.database, search_id).state is SearchState.RUNNING


class TestConvergence:
    @pytest.mark.parametrize(
        ("losses", "min_improvement", "converged"),
        [
            ([3.0, 2.0], 0.0, False),  # there is nothing before the last two
            ([3.0, 2.0, 1.9], 0.0, False),
            ([3.0, 2.0, 1.9, 2.5], 0.0, False),
            ([3.0, 2.0, 1.9, 2.5, 1.9], 0.0, True),
            ([3.0, 2.0, 1.9], 0.5, True),
            ([3.0, 2.0, 1.4], 0.5, False),
        ],
    )
    def test_is_seen_when_the_last_trials_lower_the_loss_no_more(
        self, rows: Rows, losses: list[float], min_improvement: float, *, converged: bool
    ) -> None:
        convergence = Convergence(patience=2, min_improvement=min_improvement)
        search_id = rows.search(replace(SPEC, budget=Budget(max_trials=20), convergence=convergence))
        for loss, theta in zip(losses, NAMED.values(), strict=False):
            rows.outcome(rows.attempt(rows.trial(search_id, theta)), Outcome.completed(loss=loss))
        search = _search(rows.database, search_id)
        assert (search.state, search.reason) == (SearchState.RUNNING, Reason.CONVERGED if converged else None)

    def test_counts_trials_without_a_loss(self, rows: Rows) -> None:
        spec = replace(SPEC, budget=Budget(max_trials=20), convergence=Convergence(patience=2))
        search_id = rows.search(spec)
        rows.completed(search_id, NAMED["btt"], 1.0)
        for name in ("monarch", "dense"):
            rows.outcome(rows.attempt(rows.trial(search_id, NAMED[name])), Outcome.infeasible("it diverged"))
        assert _search(rows.database, search_id).reason is Reason.CONVERGED


class TestEnqueue:
    def test_takes_the_next_number_and_a_part_of_the_budget(self, rows: Rows, search_id: str, trial_id: str) -> None:
        with rows.database.write() as session:
            trial = trials.enqueue(session, search_id, NAMED["monarch"])
        assert (trial.number, trial.replicate, trial.origin) == (1, 0, Origin.USER)
        assert trial.seed == training_seed(SPEC, 1)
        search = _search(rows.database, search_id)
        assert (search.num_trials, search.train_flops) == (2, 2 * SPEC.proxy.train_flops)

    def test_of_a_known_structure_is_a_replicate(self, rows: Rows, search_id: str, trial_id: str) -> None:
        with rows.database.write() as session:
            trial = trials.enqueue(session, search_id, NAMED["btt"].swapped())
        assert (trial.digest, trial.replicate) == (_trial(rows.database, trial_id).digest, 1)

    def test_beyond_the_budget_is_refused_and_writes_nothing(self, rows: Rows) -> None:
        search_id = rows.search(replace(SPEC, budget=Budget(max_trials=1)))
        rows.trial(search_id, NAMED["btt"])
        before = contents(rows.database)
        with pytest.raises(BudgetExhausted), rows.database.write() as session:
            trials.enqueue(session, search_id, NAMED["monarch"])
        assert contents(rows.database) == before

    @pytest.mark.parametrize("state", [state for state in SearchState if state.is_final] + [SearchState.STOPPING])
    def test_on_a_completed_search_is_refused_and_makes_no_trial(self, state: SearchState, rows: Rows) -> None:
        """Vizier refuses to suggest for a completed study, and creates three trials (PRIOR_ART 3.8 b)."""
        search_id = rows.search(state=state)
        before = contents(rows.database)
        with pytest.raises(WrongState), rows.database.write() as session:
            trials.enqueue(session, search_id, NAMED["btt"])
        assert contents(rows.database) == before


class TestSecondCompletion:
    def test_is_refused_and_overwrites_nothing(self, rows: Rows, attempt_id: str) -> None:
        """Vizier refuses a second completion, and overwrites the value (PRIOR_ART 3.8 a)."""
        rows.outcome(attempt_id, Outcome.completed(loss=1.0))
        before = contents(rows.database)
        rows.outcome(attempt_id, Outcome.completed(loss=999.0))
        assert contents(rows.database) == before


class TestExclusion:
    def test_takes_a_trial_out_of_what_is_best_and_including_it_brings_it_back(
        self, rows: Rows, search_id: str
    ) -> None:
        best = rows.completed(search_id, NAMED["btt"], 1.0)
        rows.completed(search_id, NAMED["dense"], 2.0)
        before = _search(rows.database, search_id).best_loss
        with rows.database.write() as session:
            excluded = trials.exclude(session, best, "a broken fan")
        assert excluded.excluded_reason == "a broken fan"
        with rows.database.read() as session:
            assert [ranked.loss for ranked in rankings.best(session, search_id, 10)] == [2.0]
            past = dict(repositories.history(session, search_id))
        assert [past[number].excluded for number in (0, 1)] == [True, False]
        assert (before, _search(rows.database, search_id).best_loss) == (1.0, 2.0)
        with rows.database.write() as session:
            trials.include(session, best)
        with rows.database.read() as session:
            assert [ranked.loss for ranked in rankings.best(session, search_id, 10)] == [1.0, 2.0]
        assert _search(rows.database, search_id).best_loss == 1.0

    def test_of_a_trial_that_runs_is_refused(self, rows: Rows, trial_id: str, attempt_id: str) -> None:
        before = contents(rows.database)
        with pytest.raises(WrongState), rows.database.write() as session:
            trials.exclude(session, trial_id, "why")
        with pytest.raises(WrongState), rows.database.write() as session:
            trials.include(session, trial_id)
        assert contents(rows.database) == before

    def test_twice_is_refused(self, rows: Rows, search_id: str) -> None:
        trial_id = rows.completed(search_id, NAMED["btt"], 1.0)
        with rows.database.write() as session:
            trials.exclude(session, trial_id, "a broken fan")
        before = contents(rows.database)
        with pytest.raises(WrongState, match="a broken fan"), rows.database.write() as session:
            trials.exclude(session, trial_id, "another reason")
        assert contents(rows.database) == before


class TestEvents:
    def test_tell_of_every_transition_in_order_and_without_gaps(self, rows: Rows) -> None:
        search_id = rows.search(state=SearchState.QUEUED)
        with rows.database.write() as session:
            move_search(session, repositories.search_by_id(session, search_id, lock=True), SearchState.RUNNING)
        attempt_id = rows.attempt(rows.trial(search_id, NAMED["btt"]))
        rows.progress(attempt_id, point(1))
        rows.outcome(attempt_id, Outcome.completed(loss=1.5))
        with rows.database.read() as session:
            found = session.scalars(select(Event).order_by(Event.number)).all()
        assert [event.number for event in found] == list(range(1, 7))
        assert [(event.kind, event.data.get("state")) for event in found] == [
            ("search.state", "QUEUED"),
            ("search.state", "RUNNING"),
            ("trial.state", "PROPOSED"),
            ("trial.state", "RUNNING"),
            ("trial.progress", None),
            ("trial.state", "COMPLETED"),
        ]
        assert found[-1].data["loss"] == 1.5
        assert _search(rows.database, search_id).last_event == 6
