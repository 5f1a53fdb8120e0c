"""kill -9 of Ray, whole or in parts: what ran is lost and runs again, on the next cluster or on the next node."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from search.spec import Budget, SearchSpec
from search.states import TrialState
from service import migrate, searches
from service.database import Database
from service.models import Measurement, Trial
from tests.corpora import make_corpora
from tests.faults.ledger import Ledger, assert_exactly_the_budget, read_ledger
from tests.faults.nodes import ray_nodes
from tests.faults.site import LEASE_SECONDS, LONG, Site, kill, wait_until
from tests.waiting import wait_for
from tests.workers.specs import SMALL


class TestKillOfThePartsOfRay:
    # Each costs a new cluster: one of them on each database is enough.
    @pytest.mark.parametrize(
        ("site", "part"), [("sqlite", "gcs_server"), ("postgres", "bin/ray start")], indirect=["site"]
    )
    def test_runs_the_lost_trials_again_on_the_next_cluster(self, site: Site, part: str) -> None:
        search_id = site.submit(f"{part[-5:]} killed", trials=2, train_flops=LONG)
        site.training(search_id)
        running = site.running(search_id)
        kill(site.service.child(part).pid)
        ledger = site.settled(search_id, 2)
        assert {trial.id for trial in ledger.trials if len(trial.attempts) > 1} & set(running)


class TestKillOfTheNodeWithTheTrials:
    def test_runs_them_again_on_the_next_node(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'einsearch.db'}"
        corpora_dir = make_corpora(tmp_path / "corpora")
        migrate.upgrade(url)
        with ray_nodes() as nodes, closing(Database(url)) as database:
            node = nodes.add()
            search_id = submit(database, corpora_dir)
            with runner(tmp_path, {"EINSEARCH_CORPORA_DIR": str(corpora_dir), **nodes.environment}) as is_alive:
                wait_for(lambda: is_measured(database, search_id), what="a trial that trains")
                nodes.kill(node)
                nodes.add()
                wait_until(lambda: read_ledger(database, search_id).search.state.is_final, "the end of the search")
                assert is_alive(), (tmp_path / "runner.log").read_text()
            assert lost(assert_exactly_the_budget(database, search_id, 2))


def submit(database: Database, corpora_dir: Path) -> str:
    spec = SearchSpec(name="node killed", budget=Budget(max_trials=2), proxy=replace(SMALL, train_flops=LONG))
    with database.write() as session:
        return searches.submit(session, spec, corpora_dir).search.id


@contextmanager
def runner(home: Path, environment: Mapping[str, str]) -> Iterator[Callable[[], bool]]:
    """A runner that is a process of its own, and whether it is alive."""
    settings = {"EINSEARCH_HOME": str(home), "EINSEARCH_LEASE_SECONDS": str(LEASE_SECONDS), **environment}
    with (home / "runner.log").open("wb") as log:
        command = [sys.executable, "-m", "service.runner"]
        process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)
    try:
        yield lambda: process.poll() is None
    finally:
        process.terminate()
        process.wait()


def is_measured(database: Database, search_id: str) -> bool:
    """Whether a trial runs and has a point on its learning curve."""
    query = select(Trial.id).where(Trial.search_id == search_id, Trial.state == TrialState.RUNNING)
    with database.read() as session:
        measured = [
            session.scalar(select(Measurement.step).where(Measurement.attempt_id.startswith(f"{trial}-")))
            for trial in session.scalars(query)
        ]
    return any(step is not None for step in measured)


def lost(ledger: Ledger) -> list[str]:
    """The reasons why attempts were lost."""
    return [attempt.reason or "" for trial in ledger.trials for attempt in trial.attempts if attempt.state == "LOST"]
