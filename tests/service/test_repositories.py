from collections.abc import Sequence
from dataclasses import replace

import pytest

from einlayers.theta import NAMED, Theta
from search.proposals import PastTrial
from search.states import AttemptState, SearchState, TrialState
from search.trial import Outcome
from service import repositories, trials
from service.database import Database
from service.errors import NotFound
from tests.rows import SPEC, TINY, Rows, point

WIDE = replace(SPEC, proxy=replace(TINY, width=256))
"""A search on models so wide that similar thetas are different structures; nobody trains them here."""

THETAS: Sequence[Theta] = tuple(NAMED.values())


def _lose(rows: Rows, attempt_id: str) -> None:
    lease = rows.lease(attempt_id.split("-")[0])
    with rows.database.write() as session:
        trials.record_loss(session, lease, attempt_id, "the node is gone")


def _measure(rows: Rows, attempt_id: str, loss: float, *steps: int) -> None:
    lease = rows.lease(attempt_id.split("-")[0])
    with rows.database.write() as session:
        for step in steps:
            trials.record_progress(session, lease, attempt_id, point(step, loss=loss))


class TestMeasurements:
    def test_are_those_of_the_latest_attempt_by_step(self, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(WIDE), NAMED["btt"])
        first = rows.attempt(trial_id)
        _measure(rows, first, 9.0, 1, 2, 4)
        _lose(rows, first)
        second = rows.attempt(trial_id)
        assert self._curve(rows, trial_id) == []
        _measure(rows, second, 3.0, 2, 1)
        assert self._curve(rows, trial_id) == [(1, 3.0), (2, 3.0)]

    def test_of_a_tenth_attempt_are_not_taken_for_older(self, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(WIDE), NAMED["btt"])
        for number in range(1, 12):
            attempt_id = rows.attempt(trial_id)
            _measure(rows, attempt_id, number, 1)
            rows.outcome(attempt_id, Outcome.checkpointed())
        assert self._curve(rows, trial_id) == [(1, 11.0)]

    @staticmethod
    def _curve(rows: Rows, trial_id: str) -> list[tuple[int, float]]:
        with rows.database.read() as session:
            return [(measured.step, measured.loss) for measured in repositories.measurements(session, trial_id)]


class TestHistory:
    def test_lists_all_trials_of_the_search_by_number(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.completed(rows.search(WIDE), NAMED["btt"], 9.0)
        completed = rows.completed(search_id, NAMED["btt"], 1.0)
        proposed = rows.trial(search_id, NAMED["dense"])
        infeasible = rows.trial(search_id, NAMED["monarch"])
        rows.outcome(rows.attempt(infeasible), Outcome.infeasible("it diverged"))
        with rows.database.read() as session:
            trials = [repositories.trial_by_id(session, it) for it in (completed, proposed, infeasible)]
            assert repositories.history(session, search_id) == [
                (
                    number,
                    PastTrial(
                        theta=NAMED[name],
                        digest=trials[number].digest,
                        state=state,
                        loss=loss,
                        params=trials[number].params,
                        macs=trials[number].macs,
                    ),
                )
                for number, name, state, loss in (
                    (0, "btt", TrialState.COMPLETED, 1.0),
                    (1, "dense", TrialState.PROPOSED, None),
                    (2, "monarch", TrialState.INFEASIBLE, None),
                )
            ]

    def test_since_an_event_lists_what_has_changed_after_it(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        first, _ = rows.all_completed(search_id, [(theta, 1.0) for theta in THETAS[:2]])
        with rows.database.read() as session:
            seen = repositories.search_by_id(session, search_id).last_event
            assert repositories.history(session, search_id, since=seen) == []
        rows.trial(search_id, THETAS[2])
        with rows.database.write() as session:
            trials.exclude(session, first, "a broken disk")
        with rows.database.read() as session:
            changed = repositories.history(session, search_id, since=seen)
        assert [(number, past.excluded) for number, past in changed] == [(0, True), (2, False)]


class TestTrials:
    def test_that_wait_are_taken_by_number(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        first, second = rows.attempt(rows.trial(search_id, THETAS[0])), rows.trial(search_id, THETAS[1])
        assert self._next(rows, search_id) == second
        _lose(rows, first)
        assert self._next(rows, search_id) == f"{search_id}-0"
        rows.attempt(f"{search_id}-0")
        rows.attempt(second)
        assert self._next(rows, search_id) is None

    @staticmethod
    def _next(rows: Rows, search_id: str) -> str | None:
        with rows.database.read() as session:
            trials = repositories.next_proposed(session, search_id, 1)
            return trials[0].id if trials else None

    def test_of_a_structure_are_counted(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.trial(search_id, NAMED["dense"])
        for replicate in range(3):
            trial_id = rows.trial(search_id, NAMED["btt"], replicate)
        with rows.database.read() as session:
            digest = repositories.trial_by_id(session, trial_id).digest
            assert repositories.num_replicates(session, search_id, digest) == 3
            assert repositories.num_replicates(session, search_id, "f" * 32) == 0

    def test_give_the_lowest_loss_of_those_that_are_not_excluded(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        assert self._lowest(rows, search_id) is None
        lowest, _ = rows.all_completed(search_id, [(THETAS[0], 1.0), (THETAS[1], 2.0)])
        rows.trial(search_id, THETAS[2])
        assert self._lowest(rows, search_id) == 1.0
        with rows.database.write() as session:
            trials.exclude(session, lowest, "a broken disk")
        assert self._lowest(rows, search_id) == 2.0

    @staticmethod
    def _lowest(rows: Rows, search_id: str) -> float | None:
        with rows.database.read() as session:
            return repositories.lowest_loss(session, search_id)

    def test_that_are_not_there_are_not_found(self, rows: Rows) -> None:
        rows.trial(rows.search(WIDE), NAMED["btt"])
        with pytest.raises(NotFound, match="there is no trial 'ffff-0'"), rows.database.read() as session:
            repositories.trial_by_id(session, "ffff-0")

    def test_come_with_their_search_and_their_attempts_in_order(self, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(WIDE), NAMED["btt"])
        for _ in range(3):
            _lose(rows, rows.attempt(trial_id))
        with rows.database.read() as session:
            trial = repositories.trial_by_id(session, trial_id)
        assert trial.search.spec == WIDE
        assert [attempt.number for attempt in trial.attempts] == [1, 2, 3]


class TestAttempts:
    def test_that_run_are_those_of_the_searches_asked_for(self, rows: Rows) -> None:
        first, second, third = (rows.search(WIDE) for _ in range(3))
        rows.completed(first, THETAS[0], 1.0)
        running = {search_id: rows.attempt(rows.trial(search_id, THETAS[1])) for search_id in (first, second, third)}
        with rows.database.read() as session:
            found = repositories.running_attempts(session, [first, second])
            assert {attempt.trial.search_id: attempt.id for attempt in found} == {
                first: running[first],
                second: running[second],
            }
            assert repositories.running_attempts(session, []) == []

    def test_of_a_trial_are_counted_by_state_or_all(self, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(WIDE), NAMED["btt"])
        _lose(rows, rows.attempt(trial_id))
        rows.attempt(trial_id)
        with rows.database.read() as session:
            assert repositories.num_attempts(session, trial_id) == 2
            assert repositories.num_attempts(session, trial_id, AttemptState.LOST) == 1
            assert repositories.num_attempts(session, trial_id, AttemptState.ENDED) == 0


class TestSearches:
    def test_are_counted_by_state_and_by_runner(self, rows: Rows) -> None:
        for state in SearchState:
            rows.search(WIDE, state)
        held = rows.search(WIDE)
        runner_id = rows.lease(held).runner_id
        alive = [SearchState.QUEUED, SearchState.RUNNING]
        with rows.database.read() as session:
            assert repositories.num_searches(session, alive) == 3
            assert repositories.num_searches(session, alive, runner_id=runner_id) == 1
            assert repositories.num_searches(session, []) == 0

    def test_of_a_runner_come_oldest_first(self, rows: Rows) -> None:
        made = [rows.search(WIDE) for _ in range(3)]
        with rows.database.write() as session:
            for search_id in made[:0:-1]:
                repositories.search_by_id(session, search_id).runner_id = "aaaa"
        with rows.database.read() as session:
            assert [search.id for search in repositories.searches_of(session, "aaaa")] == made[1:]

    def test_that_are_not_there_are_not_found(self, database: Database) -> None:
        with pytest.raises(NotFound, match="there is no search 'ffff'"), database.read() as session:
            repositories.search_by_id(session, "ffff")
