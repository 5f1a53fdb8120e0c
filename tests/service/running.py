"""Searches carried out turn by turn in this process, and what came of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from search.proxies.char_lm import FileCorpus
from search.sampling import Random
from search.spec import Budget, SearchSpec
from search.states import SearchState
from service import leases, listings, repositories, searches
from service.clock import now
from service.database import Database
from service.listings import Filters
from service.models import Reason, Search, Trial
from service.models import Runner as RunnerRow
from service.paging import PageRequest
from service.runner import Runner
from tests.rows import TINY, contents
from tests.service.pools import PowerCut
from workers.pool import Pool

PROXY = replace(TINY, corpus=FileCorpus(path="corpus.txt"))

COMPLETED = (SearchState.COMPLETED, Reason.BUDGET_TRIALS)
"""How a search ends that has spent its trials."""


def spec_of(max_trials: int, **changes: object) -> SearchSpec:
    """A small search on a corpus of the test's own, one trial at a time."""
    spec = SearchSpec(name="test", budget=Budget(max_trials=max_trials), proxy=PROXY, sampler=Random(), concurrency=1)
    return replace(spec, **changes)  # type: ignore[arg-type]  # the fields of a spec


def submit(database: Database, spec: SearchSpec, corpora_dir: Path) -> str:
    """A search that was submitted; its id."""
    with database.write() as session:
        return searches.submit(session, spec, corpora_dir).search.id


def results(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row but those of the runners, which beat."""
    return {table: found for table, found in contents(database).items() if table != "runners"}


def next_runner(database: Database, pool: Pool) -> Runner:
    """A runner that comes after all earlier ones are gone and their leases over."""
    with database.write() as session:
        session.execute(update(RunnerRow).values(expires_at=now(session)))
        runner_id = leases.enrol(session, 60).id
    return Runner(database, pool, runner_id, 60)


def run(database: Database, pool: Pool) -> None:
    """Have a runner take turns until no search is active."""
    turn_to_the_end(next_runner(database, pool))


def turn_to_the_end(runner: Runner) -> None:
    """Take turns until the runner holds no search."""
    for _ in range(300):
        if not runner.turn(0):
            return
    raise AssertionError("the searches do not end")


def cut(database: Database, pool: Pool) -> None:
    """A runner that starts what it can and dies."""
    with pytest.raises(PowerCut):
        next_runner(database, pool).turn(0)


def search_of(database: Database, search_id: str) -> Search:
    """A search as it is now."""
    with database.read() as session:
        return repositories.search_by_id(session, search_id)


def ending(database: Database, search_id: str) -> tuple[SearchState, Reason | None]:
    """The state of a search, and why it is in it."""
    search = search_of(database, search_id)
    return search.state, search.reason


def trials_of(database: Database, search_id: str) -> Sequence[Trial]:
    """All trials of a search."""
    with database.read() as session:
        return listings.trials(session, search_id, PageRequest(size=500), Filters()).items


def states(database: Database, search_id: str) -> list[str]:
    """The states of all trials of a search."""
    return [trial.state for trial in trials_of(database, search_id)]


def attempt_states(trial: Trial) -> list[str]:
    """How the attempts at a trial ended."""
    return [attempt.state for attempt in trial.attempts]
