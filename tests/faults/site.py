"""A service to break: ``einsearch up`` with two runners, its database to look into, and who of its processes does what."""

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from search.states import TrialState
from service import leases
from service.database import Database
from service.models import Attempt, Runner, Search, Trial
from tests.databases import OwnPostgres, own_postgres
from tests.embedded_service import EmbeddedService, Process, descendants, embedded_service
from tests.faults.ledger import Ledger, assert_exactly_the_budget
from tests.waiting import wait_for

LEASE_SECONDS = 2.0
"""Short, so that others take over soon."""

ENVIRONMENT: Mapping[str, str] = {
    "EINSEARCH_LEASE_SECONDS": str(LEASE_SECONDS),
    # Ray's workers are nice by default: on a busy machine they would get next to nothing.
    "RAY_worker_niceness": "0",
}

SHORT = 1e8
"""Training FLOPs of a trial that takes some tenths of a second."""

A_WHILE = 4e9
"""Training FLOPs of a trial that still runs when something happens that it should not notice."""

LONG = 1e10
"""Training FLOPs of a trial that takes some seconds, so that a fault can hit it."""


DEADLINE = 300.0
"""Seconds after which a service that is not over a fault has not survived it: new clusters and new slots take their time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The service and its database; ``postgres`` is None on SQLite."""

    service: EmbeddedService
    database: Database
    postgres: OwnPostgres | None = None

    def submit(self, name: str, *, trials: int, train_flops: float, concurrency: int = 2) -> str:
        """Submit a search of small models; its id."""
        return self.service.submit(name, trials=trials, train_flops=train_flops, concurrency=concurrency)

    def settled(self, search_id: str, num_trials: int) -> Ledger:
        """The ledger of a search once it has ended, which must be with exactly its budget."""
        wait_until(lambda: self.service.client.search(search_id)["finished_at"], "the end of the search")
        return assert_exactly_the_budget(self.database, search_id, num_trials)

    def training(self, search_id: str) -> str:
        """The id of a trial of a search that trains, with a point on its curve: no call to its slot is on its way then."""
        found = wait_for(
            lambda: [trial for trial in self.running(search_id) if any(self.service.client.measurements(trial))],
            what="a trial that trains",
        )
        return found[0]

    def slots(self) -> list[Process]:
        """The processes of Ray's workers."""
        return [p for p in descendants(self.service.process.pid) if p.command.startswith("ray::")]

    def running(self, search_id: str) -> list[str]:
        """The ids of the trials of a search that run."""
        with self.database.read() as session:
            query = select(Trial.id).where(Trial.search_id == search_id, Trial.state == TrialState.RUNNING)
            return list(session.scalars(query))

    def holder(self, search_id: str) -> Runner | None:
        """The runner that carries a search out, if it has one."""
        with self.database.read() as session:
            query = select(Runner).join(Search, Search.runner_id == Runner.id).where(Search.id == search_id)
            return session.scalar(query)

    def runners(self) -> list[Runner]:
        """The runners that are alive."""
        with self.database.read() as session:
            return list(leases.alive(session))

    def has_worked(self, runner_id: str, search_id: str) -> bool:
        """Whether a runner has started, or taken over, an attempt of a search."""
        with self.database.read() as session:
            query = select(Attempt.id).where(Attempt.runner_id == runner_id, Attempt.trial_id.startswith(search_id))
            return session.scalar(query.limit(1)) is not None


@contextmanager
def new_site(kind: str, home: Path, *, runners: int = 2) -> Iterator[Site]:
    """A service on a database of its own.

    Raises:
        MissingPrograms: the database is Postgres, which is not installed.
    """
    with own_postgres() if kind == "postgres" else nullcontext() as postgres:
        url = postgres.url if postgres else f"sqlite:///{home / 'einsearch.db'}"
        environment = {**ENVIRONMENT, "EINSEARCH_DATABASE_URL": url}
        with embedded_service(home, environment, runners=runners) as service, closing(Database(url)) as database:
            yield Site(service=service, database=database, postgres=postgres)


def wait_until(over: Callable[[], object], what: str) -> None:
    """Return once it is so.

    Raises:
        TimeoutError: it took longer than ``DEADLINE``.
    """
    wait_for(over, what=what, within=DEADLINE)


def kill(pid: int) -> None:
    """End a process at once, without a chance to clean up, if it is there."""
    _signal(pid, signal.SIGKILL)


def freeze(database: Database, pid: int) -> None:
    """Stop a process, but not while it holds the write lock of an SQLite file: nobody could take over from it then."""
    while True:
        _signal(pid, signal.SIGSTOP)
        wait_for(lambda: _state(pid), until=lambda state: state in "TZ", what=f"process {pid} to stop")
        if not database.is_sqlite or _can_write(database):
            return
        thaw(pid)


def thaw(pid: int) -> None:
    """Let a stopped process go on."""
    _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _state(pid: int) -> str:
    """The letter by which Linux tells the state of a process; Z for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _can_write(database: Database) -> bool:
    """Whether the write lock of an SQLite file is free, or soon is."""
    with closing(sqlite3.connect(str(database.engine.url.database), timeout=1.0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True
