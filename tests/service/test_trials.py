import pytest

from einlayers.theta import NAMED
from search.proposals import Proposal
from search.states import AttemptState, IllegalTransition, TrialState
from search.structure import structure_of
from search.trial import Outcome
from service import repositories, trials
from service.database import Database
from service.models import Attempt, Trial
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


def _attempt(database: Database, attempt_id: str) -> Attempt:
    with database.read() as session:
        attempt = repositories.attempt_by_id(session, attempt_id)
    assert attempt is not None
    return attempt


def _lose(database: Database, attempt_id: str, reason: str = "the node is gone") -> None:
    with database.write() as session:
        trials.record_loss(session, attempt_id, reason)


def _steps(database: Database, attempt_id: str) -> set[int]:
    with database.read() as session:
        return repositories.steps_measured(session, attempt_id)


class TestAdd:
    def test_writes_down_all_that_is_known_before_training(self, rows: Rows, search_id: str) -> None:
        structure = structure_of(NAMED["btt"], TINY)
        proposal = Proposal(number=0, replicate=0, structure=structure, seed=2**32 - 1, history_size=7)
        with rows.database.write() as session:
            trial_id = trials.add(session, repositories.search_by_id(session, search_id), proposal).id
        trial = _trial(rows.database, trial_id)
        assert trial_id == f"{search_id}-0"
        assert (trial.theta, trial.family, trial.width) == (structure.theta, "btt", structure.width)
        assert (trial.omega, trial.psi, trial.nu) == (
            structure.taxonomy.omega,
            structure.taxonomy.psi,
            structure.taxonomy.nu,
        )
        assert (trial.params, trial.macs) == (structure.cost.params, structure.cost.macs)
        assert (trial.seed, trial.history_size, trial.digest) == (2**32 - 1, 7, structure.digest)
        assert (trial.state, trial.train_flops) == (TrialState.PROPOSED, SPEC.proxy.train_flops)
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
        for step in (1, 2, 4):
            with rows.database.write() as session:
                trials.record_progress(session, attempt_id, point(step))
        assert _steps(rows.database, attempt_id) == {1, 2, 4}

    def test_that_is_told_twice_counts_once(self, rows: Rows, attempt_id: str) -> None:
        for loss in (1.0, 2.0):
            with rows.database.write() as session:
                trials.record_progress(session, attempt_id, point(1, loss))
        with rows.database.read() as session:
            assert [p.loss for p in repositories.measurements(session, f"{attempt_id.rpartition('-')[0]}")] == [1.0]

    def test_leaves_the_trial_running(self, rows: Rows, trial_id: str, attempt_id: str) -> None:
        with rows.database.write() as session:
            trials.record_progress(session, attempt_id, point(1))
        assert _trial(rows.database, trial_id).state is TrialState.RUNNING

    def test_of_an_unknown_attempt_changes_nothing(self, rows: Rows, attempt_id: str) -> None:
        before = contents(rows.database)
        with rows.database.write() as session:
            trials.record_progress(session, "ffff-0-1", point(1))
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
        with rows.database.write() as session:
            trials.record_progress(session, attempt_id, point(1))
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
        with rows.database.write() as session:
            trials.record_progress(session, attempt_id, point(8))
            trials.record_loss(session, attempt_id, "the node is gone")
        assert contents(rows.database) == before

    @ENDS
    def test_of_an_attempt_that_was_given_up_changes_nothing(
        self, state: TrialState, rows: Rows, trial_id: str, attempt_id: str
    ) -> None:
        _lose(rows.database, attempt_id)
        second = rows.attempt(trial_id)
        before = contents(rows.database)
        rows.outcome(attempt_id, OUTCOMES[state])
        with rows.database.write() as session:
            trials.record_progress(session, attempt_id, point(8))
        assert contents(rows.database) == before
        rows.outcome(second, Outcome.completed(loss=2.0))
        assert _trial(rows.database, trial_id).loss == 2.0

    def test_of_an_unknown_attempt_changes_nothing(self, rows: Rows, attempt_id: str) -> None:
        before = contents(rows.database)
        rows.outcome("ffff-0-1", Outcome.completed(loss=1.0))
        assert contents(rows.database) == before


class TestLoss:
    def test_makes_the_trial_wait_for_its_next_attempt(self, rows: Rows, trial_id: str, attempt_id: str) -> None:
        _lose(rows.database, attempt_id)
        attempt, trial = _attempt(rows.database, attempt_id), _trial(rows.database, trial_id)
        assert (attempt.state, attempt.reason) == (AttemptState.LOST, "the node is gone")
        assert attempt.finished_at is not None
        assert (trial.state, trial.finish_order, trial.finished_at) == (TrialState.PROPOSED, None, None)
        assert rows.attempt(trial_id) == f"{trial_id}-2"

    def test_of_too_many_slots_fails_the_trial(self, rows: Rows, trial_id: str) -> None:
        for number in range(1, MAX_LOST_ATTEMPTS + 1):
            assert _trial(rows.database, trial_id).state is TrialState.PROPOSED
            _lose(rows.database, rows.attempt(trial_id), f"loss {number}")
        trial = _trial(rows.database, trial_id)
        assert (trial.state, trial.finish_order) == (TrialState.FAILED, 0)
        assert trial.reason == f"lost its slot {MAX_LOST_ATTEMPTS} times, the last time: loss {MAX_LOST_ATTEMPTS}"
        assert [attempt.state for attempt in trial.attempts] == [AttemptState.LOST] * MAX_LOST_ATTEMPTS
