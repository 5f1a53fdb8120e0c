from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import event

from einlayers.theta import NAMED
from search.states import SearchState, TrialState
from search.trial import Outcome
from service import leases
from service.database import Database
from service.figures import Figures, latest_runner, read_figures
from service.models import RunnerStats
from tests.rows import SPEC, Rows

THETAS = [NAMED["dense"], NAMED["monarch"], NAMED["btt"]]


def _figures(database: Database) -> Figures:
    with database.read() as session:
        return read_figures(session)


def _runner(database: Database, seconds: float = 60, stats: RunnerStats | None = None) -> str:
    """A runner that is alive for some more seconds, or has not been for some."""
    with database.write() as session:
        runner = leases.enrol(session, seconds)
        runner.stats = stats or RunnerStats()
        return runner.id


@contextmanager
def _statements(database: Database) -> Iterator[list[str]]:
    said: list[str] = []

    def listen(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        said.append(statement)

    event.listen(database.engine, "before_cursor_execute", listen)
    yield said
    event.remove(database.engine, "before_cursor_execute", listen)


class TestFigures:
    def test_are_zero_for_every_state_at_first(self, database: Database) -> None:
        assert _figures(database) == Figures(
            searches=dict.fromkeys(SearchState, 0),
            trials=dict.fromkeys(TrialState, 0),
            queue_depth=0,
            running_attempts=0,
            retries=0,
            runners=[],
        )

    def test_count_searches_and_trials_by_state(self, database: Database, rows: Rows) -> None:
        for state in (SearchState.QUEUED, SearchState.PAUSED, SearchState.CANCELLED):
            rows.search(state=state)
        for _ in range(2):
            search_id = rows.search(state=SearchState.RUNNING)
            rows.completed(search_id, THETAS[0], 1.0)
            rows.attempt(rows.trial(search_id, THETAS[1]))
            rows.trial(search_id, THETAS[2])
        figures = _figures(database)
        assert {state: count for state, count in figures.searches.items() if count} == {
            SearchState.QUEUED: 1,
            SearchState.RUNNING: 2,
            SearchState.PAUSED: 1,
            SearchState.CANCELLED: 1,
        }
        assert {state: count for state, count in figures.trials.items() if count} == {
            TrialState.COMPLETED: 2,
            TrialState.RUNNING: 2,
            TrialState.PROPOSED: 2,
        }
        assert figures.running_attempts == 2

    def test_take_what_waits_in_searches_that_go_on_for_the_queue(self, database: Database, rows: Rows) -> None:
        for state in (SearchState.QUEUED, SearchState.RUNNING, SearchState.PAUSED, SearchState.COMPLETED):
            rows.all_proposed(rows.search(state=state), THETAS)
        figures = _figures(database)
        assert figures.trials[TrialState.PROPOSED] == 12
        assert figures.queue_depth == 6

    def test_sum_retries(self, database: Database, rows: Rows) -> None:
        for _ in range(2):
            trial_id = rows.trial(rows.search(), THETAS[0])
            rows.outcome(rows.attempt(trial_id), Outcome.out_of_memory("no memory left"))
        assert _figures(database).retries == 2

    def test_know_the_runners_that_are_alive_and_their_slots(self, database: Database) -> None:
        alive = {_runner(database, stats=RunnerStats(slots=4, busy=busy)) for busy in (1, 3)}
        _runner(database, seconds=-1, stats=RunnerStats(slots=100, busy=100))
        figures = _figures(database)
        assert {runner.id for runner in figures.runners} == alive
        assert (figures.slots, figures.slots_busy) == (8, 4)

    def test_cost_the_same_however_many_trials_there_are(self, database: Database, rows: Rows) -> None:
        with _statements(database) as before:
            _figures(database)
        for _ in range(3):
            rows.all_proposed(rows.search(replace(SPEC, name="more")), THETAS)
        with _statements(database) as after:
            _figures(database)
        assert after == before
        assert not any(" trials" in statement for statement in after)


class TestLatestRunner:
    def test_is_nobody_at_first(self, database: Database) -> None:
        with database.read() as session:
            assert latest_runner(session) is None

    def test_is_the_last_to_give_a_sign_of_life(self, database: Database) -> None:
        first, second = _runner(database, seconds=-2), _runner(database, seconds=-2)
        with database.write() as session:
            leases.renew(session, first, -1, RunnerStats())
            runner = latest_runner(session)
            assert runner is not None
            runner.seen_at += timedelta(seconds=1)
        with database.read() as session:
            latest = latest_runner(session)
            assert latest is not None
            assert latest.id == first != second
