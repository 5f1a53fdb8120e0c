"""What becomes of the rows of a database at 0001, there and back; written in plain SQL, for the old code is gone."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, select
from sqlalchemy.orm import joinedload, selectinload

from einlayers.theta import NAMED
from search.spec import Budget
from search.states import AttemptState, SearchState, TrialState
from service import migrate
from service.database import Database
from service.models import Attempt, Measurement, Origin, PauseMode, Reason, Result, Search, Trial
from tests.databases import Server

_START = datetime(2026, 3, 1, 12, tzinfo=UTC)

_THETA = {"alpha": 0.5, "beta": 0.0, "gamma": 0.5, "delta": 0.0, "epsilon": 0.5, "phi": 0.5, "rho": 0.25}

_SPEC = {
    "name": "old",
    "budget": {"max_trials": 5},
    "proxy": {
        "kind": "char_lm",
        "dense_width": 8,
        "width": None,
        "depth": 1,
        "num_heads": 1,
        "context": 16,
        "batch_size": 8,
        "train_flops": 1e6,
        "base_lr": 0.005,
        "corpus": {"kind": "stdlib"},
    },
    "space": {"subspace": "full", "constraints": {"omega_min": 0.5}, "seeds": ["btt"]},
    "sampler": {"kind": "tpe", "seed": 0, "startup_trials": 10},
    "pruner": {"kind": "none"},
    "objectives": [{"metric": "loss", "direction": "minimize"}],
    "replicates": 2,
    "concurrency": 2,
    "resources": {"cpus": 1.0, "gpus": 0.0},
}

Row = dict[str, Any]


def _time(minutes: int | None) -> datetime | None:
    return None if minutes is None else _START + timedelta(minutes=minutes)


def _search(
    search_id: str,
    state: str,
    *,
    started: int | None = None,
    finished: int | None = None,
    reason: str | None = None,
    spec: Row = _SPEC,
) -> Row:
    """A search that was created at the start, and the minutes at which it started and finished."""
    return {
        "id": search_id,
        "name": "old",
        "spec": spec,
        "proxy_kind": "char_lm",
        "state": state,
        "reason": reason,
        "waiting_for": None,
        "created_at": _START,
        "started_at": _time(started),
        "finished_at": _time(finished),
    }


def _trial(
    search_id: str,
    number: int,
    state: str,
    *,
    digest: str | None = None,
    replicate: int = 0,
    loss: float | None = None,
    finished: int | None = None,
) -> Row:
    return {
        "id": f"{search_id}-{number}",
        "search_id": search_id,
        "number": number,
        "replicate": replicate,
        "theta": _THETA,
        "family": "btt",
        "width": 8,
        "digest": digest or f"structure {number}",
        "omega": 0.5,
        "psi": 1.0,
        "nu": 1.5,
        "params": 2**40,
        "macs": 2**41,
        "train_flops": 1e6,
        "seed": 2**62,
        "history_size": number,
        "state": state,
        "reason": "it raised" if state == "FAILED" else None,
        "loss": loss,
        "finish_order": None if finished is None else number,
        "created_at": _time(number),
        "finished_at": _time(finished),
    }


def _attempt(trial_id: str, number: int, state: str, *, seconds: float | None = None) -> Row:
    return {
        "id": f"{trial_id}-{number}",
        "trial_id": trial_id,
        "number": number,
        "slot": "slot",
        "state": state,
        "reason": "the slot died" if state == "LOST" else None,
        "seconds": seconds,
        "started_at": _time(number),
        "finished_at": None if state == "RUNNING" else _time(number + 1),
    }


_OLD_ROWS: dict[str, list[Row]] = {
    "searches": [
        _search("cancelled", "CANCELLED", finished=7, reason="USER"),
        _search("completed", "COMPLETED", started=1, finished=61, reason="BUDGET_TRIALS"),
        _search("paused", "PAUSED", started=2),
        _search("queued", "QUEUED"),
        _search("running", "RUNNING", started=3, reason="SPACE_EXHAUSTED"),
    ],
    "trials": [
        _trial("completed", 0, "INFEASIBLE", digest="a", finished=10),
        _trial("completed", 1, "COMPLETED", digest="b", loss=3.0, finished=11),
        _trial("completed", 2, "COMPLETED", digest="c", loss=2.5, finished=12),
        _trial("completed", 3, "COMPLETED", digest="b", replicate=1, loss=1.0, finished=13),
        _trial("completed", 4, "FAILED", digest="d", finished=14),
        _trial("paused", 0, "PROPOSED", digest="b"),
        _trial("running", 0, "RUNNING"),
        _trial("running", 1, "COMPLETED", digest="b", loss=4.0, finished=8),
    ],
    "attempts": [
        _attempt("completed-1", 1, "LOST", seconds=9.0),
        _attempt("completed-1", 2, "ENDED", seconds=2.5),
        _attempt("completed-2", 1, "ENDED", seconds=3.5),
        _attempt("completed-4", 1, "LOST"),
        _attempt("completed-4", 2, "LOST"),
        _attempt("paused-0", 1, "LOST"),
        _attempt("running-0", 1, "RUNNING"),
        _attempt("running-1", 1, "ENDED", seconds=4.5),
    ],
    "measurements": [
        {"attempt_id": "completed-1-2", "step": 1, "tokens": 2**40, "train_flops": 1e5, "loss": 4.0},
        {"attempt_id": "completed-1-2", "step": 2, "tokens": 2**41, "train_flops": 2e5, "loss": 3.0},
    ],
}


def _tables(connection: Connection) -> list[Table]:
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def _contents(engine: Engine) -> dict[str, list[Row]]:
    """Every row of every table that there is, as the database has it."""
    with engine.connect() as connection:
        return {
            table.name: [
                dict(row) for row in connection.execute(table.select().order_by(*table.primary_key)).mappings()
            ]
            for table in _tables(connection)
        }


def _insert(engine: Engine, rows: dict[str, list[Row]]) -> None:
    with engine.begin() as connection:
        for table in _tables(connection):
            if rows.get(table.name):
                connection.execute(table.insert(), rows[table.name])


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """A database at 0001 with rows."""
    with server.empty() as made:
        command.upgrade(migrate.configuration(made), "0001")
        engine = create_engine(made)
        _insert(engine, _OLD_ROWS)
        engine.dispose()
        yield made


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """It, to look at as it is, whatever the models say."""
    made = create_engine(url)
    yield made
    made.dispose()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """It after the upgrade."""
    _upgrade(url)
    with closing(Database(url)) as opened:
        yield opened


_RENAMED = {"tokens": "examples"}
"""What came under another name since."""


def _upgrade(url: str) -> None:
    # To the newest schema, which the models know.
    command.upgrade(migrate.configuration(url), "head")


def _downgrade(url: str) -> None:
    command.downgrade(migrate.configuration(url), "0001")


def _searches(database: Database) -> dict[str, Search]:
    with database.read() as session:
        return {search.id: search for search in session.scalars(select(Search))}


def _trials(database: Database) -> dict[str, Trial]:
    options = (joinedload(Trial.search), selectinload(Trial.attempts))
    with database.read() as session:
        return {trial.id: trial for trial in session.scalars(select(Trial).options(*options))}


def _results(database: Database) -> dict[tuple[str, str], Result]:
    with database.read() as session:
        return {(result.search_id, result.digest): result for result in session.scalars(select(Result))}


class TestUpgrade:
    def test_leaves_what_there_was(self, url: str, engine: Engine) -> None:
        before = _contents(engine)
        _upgrade(url)
        after = _contents(engine)
        assert {table: len(rows) for table, rows in before.items()} == {
            table: len(rows) for table, rows in _OLD_ROWS.items()
        }
        for table, rows in before.items():
            assert [{name: row[_RENAMED.get(name, name)] for name in rows[0]} for row in after[table]] == rows

    def test_makes_the_tables_of_the_models(self, url: str) -> None:
        migrate.check(url)

    def test_gives_searches_to_the_only_owner_there_was(self, database: Database) -> None:
        assert {search.owner for search in _searches(database).values()} == {"local"}

    def test_lets_nobody_hold_a_search(self, database: Database) -> None:
        searches = _searches(database).values()
        assert {(search.runner_id, search.epoch, search.last_event) for search in searches} == {(None, 0, 0)}

    def test_takes_the_last_known_time_for_that_of_the_state(self, database: Database) -> None:
        assert {search.id: search.state_since for search in _searches(database).values()} == {
            "cancelled": _time(7),
            "completed": _time(61),
            "paused": _time(2),
            "queued": _START,
            "running": _time(3),
        }

    def test_has_paused_searches_drain(self, database: Database) -> None:
        modes = {search.id: search.pause_mode for search in _searches(database).values()}
        assert modes.pop("paused") is PauseMode.DRAIN
        assert set(modes.values()) == {None}

    def test_counts_the_trials_of_searches(self, database: Database) -> None:
        assert {search.id: search.counts for search in _searches(database).values()} == {
            "cancelled": {},
            "completed": {TrialState.COMPLETED: 3, TrialState.FAILED: 1, TrialState.INFEASIBLE: 1},
            "paused": {TrialState.PROPOSED: 1},
            "queued": {},
            "running": {TrialState.COMPLETED: 1, TrialState.RUNNING: 1},
        }

    def test_sums_searches_up(self, database: Database) -> None:
        assert {
            search.id: (search.best_loss, search.train_flops, search.num_retries, search.seconds_before)
            for search in _searches(database).values()
        } == {
            "cancelled": (None, 0.0, 0, 0.0),
            "completed": (1.0, 5e6, 3, 3600.0),
            "paused": (None, 1e6, 1, 0.0),
            "queued": (None, 0.0, 0, 0.0),
            "running": (4.0, 2e6, 0, 0.0),
        }

    def test_leaves_specs_and_reasons_that_read_as_before(self, database: Database) -> None:
        search = _searches(database)["completed"]
        assert search.spec.budget == Budget(max_trials=5)
        assert search.spec.space.constraints.omega_min == 0.5
        assert (search.state, search.reason) == (SearchState.COMPLETED, Reason.BUDGET_TRIALS)

    def test_has_old_trials_come_from_the_search(self, database: Database) -> None:
        trials = _trials(database).values()
        assert {(trial.origin, trial.changed, trial.alone, trial.excluded_at) for trial in trials} == {
            (Origin.SEARCH, 0, False, None)
        }

    def test_leaves_structures_that_read_as_before(self, database: Database) -> None:
        trial = _trials(database)["completed-1"]
        assert trial.theta == NAMED["btt"]
        assert trial.dims
        assert (trial.params, trial.macs, trial.seed) == (2**40, 2**41, 2**62)

    def test_times_trials(self, database: Database) -> None:
        trials = _trials(database)
        assert trials["completed-3"].state_since == trials["completed-3"].finished_at == _time(13)
        assert trials["running-0"].state_since == trials["running-0"].created_at == _START

    def test_takes_seconds_from_the_attempt_that_ended(self, database: Database) -> None:
        seconds = {trial.id: trial.seconds for trial in _trials(database).values() if trial.seconds is not None}
        assert seconds == {"completed-1": 2.5, "completed-2": 3.5, "running-1": 4.5}

    def test_leaves_attempts_to_no_runner(self, database: Database) -> None:
        attempts = [attempt for trial in _trials(database).values() for attempt in trial.attempts]
        assert len(attempts) == len(_OLD_ROWS["attempts"])
        assert {(a.runner_id, a.epoch, a.resumed_step, a.late, a.late_at) for a in attempts} == {
            ("", 0, None, None, None)
        }
        assert [a.id for a in attempts if a.state is AttemptState.RUNNING] == ["running-0-1"]

    def test_leaves_learning_curves(self, database: Database) -> None:
        with database.read() as session:
            curve = session.scalars(select(Measurement).order_by(Measurement.step)).all()
        assert [(point.step, point.examples, point.loss) for point in curve] == [(1, 2**40, 4.0), (2, 2**41, 3.0)]

    def test_knows_each_structure_by_its_first_trial_and_the_mean_of_its_losses(self, database: Database) -> None:
        assert {
            of: (result.trial_id, result.num_trials, result.loss_mean, result.loss_m2, result.changed)
            for of, result in _results(database).items()
        } == {
            ("completed", "b"): ("completed-1", 2, 2.0, 2.0, 0),
            ("completed", "c"): ("completed-2", 1, 2.5, 0.0, 0),
            ("running", "b"): ("running-1", 1, 4.0, 0.0, 0),
        }


class TestDowngrade:
    def test_gives_the_old_rows_back(self, url: str, engine: Engine) -> None:
        before = _contents(engine)
        _upgrade(url)
        _downgrade(url)
        assert _contents(engine) == before

    def test_can_be_undone_with_the_same_result(self, url: str, engine: Engine) -> None:
        _upgrade(url)
        before = _contents(engine)
        _downgrade(url)
        _upgrade(url)
        assert _contents(engine) == before

    def test_takes_attempts_of_new_ends_for_lost(self, url: str, engine: Engine, database: Database) -> None:
        with database.write() as session:
            session.get_one(Attempt, "completed-1-1").state = AttemptState.OUT_OF_MEMORY
            session.get_one(Attempt, "paused-0-1").state = AttemptState.CHECKPOINTED
        database.close()
        _downgrade(url)
        states = {row["id"]: row["state"] for row in _contents(engine)["attempts"]}
        assert states == {row["id"]: row["state"] for row in _OLD_ROWS["attempts"]}

    @pytest.mark.parametrize(
        ("state", "reason", "old"),
        [
            (SearchState.PAUSED, Reason.USER, None),
            (SearchState.RUNNING, Reason.SPACE_EXHAUSTED, "SPACE_EXHAUSTED"),
            (SearchState.STOPPING, Reason.USER, "USER"),
            (SearchState.STOPPING, Reason.BUDGET_SECONDS, "BUDGET_TRIALS"),
            (SearchState.COMPLETED, Reason.BUDGET_TRAIN_FLOPS, "BUDGET_TRIALS"),
            (SearchState.COMPLETED, Reason.SPACE_EXHAUSTED, "SPACE_EXHAUSTED"),
            (SearchState.FAILED, Reason.TOO_MANY_FAILURES, "USER"),
            (SearchState.FAILED, Reason.ALL_TRIALS_FAILED, "ALL_TRIALS_FAILED"),
        ],
    )
    def test_says_reasons_in_old_words(
        self, state: SearchState, reason: Reason, old: str | None, url: str, engine: Engine, database: Database
    ) -> None:
        with database.write() as session:
            search = session.get_one(Search, "completed")
            search.state, search.reason = state, reason
        database.close()
        _downgrade(url)
        reasons = {row["id"]: row["reason"] for row in _contents(engine)["searches"]}
        assert reasons["completed"] == old

    @pytest.mark.parametrize(
        ("search_id", "budget", "max_trials"),
        [
            ("completed", Budget(max_seconds=60), 5),
            ("completed", Budget(max_train_flops=1e9), 5),
            ("completed", Budget(max_trials=7, max_seconds=60, max_failures=3), 7),
            ("queued", Budget(max_seconds=60), 1),
        ],
    )
    def test_takes_a_budget_without_trials_for_what_there_is(
        self, search_id: str, budget: Budget, max_trials: int, url: str, engine: Engine, database: Database
    ) -> None:
        with database.write() as session:
            search = session.get_one(Search, search_id)
            search.spec = replace(search.spec, budget=budget)
        database.close()
        _downgrade(url)
        specs = {row["id"]: row["spec"] for row in _contents(engine)["searches"]}
        assert specs[search_id]["budget"] == {"max_trials": max_trials}
        assert specs[search_id]["proxy"] == _SPEC["proxy"]
