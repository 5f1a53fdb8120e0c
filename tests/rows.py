"""Rows as the use cases write them, without a runner and without training; and all rows at once, to compare."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from einlayers.theta import Theta
from search.proposals import Proposal
from search.proxies.char_lm import CharLM
from search.spec import Budget, SearchSpec
from search.states import SearchState
from search.structure import structure_of
from search.trial import Outcome, Report
from service import leases, repositories, searches, trials
from service.database import Database
from service.keys import LOCAL, Caller
from service.leases import Lease
from service.models import Base, Search, Trial
from service.transitions import move_search

TINY = CharLM(dense_width=8, num_heads=1, depth=1, context=16, batch_size=8, train_flops=1e6, base_lr=5e-3)
"""A proxy whose trials take some ten milliseconds."""

SPEC = SearchSpec(name="test", budget=Budget(max_trials=10), proxy=TINY)

_PATHS: Mapping[SearchState, tuple[SearchState, ...]] = {
    SearchState.QUEUED: (),
    SearchState.RUNNING: (SearchState.RUNNING,),
    SearchState.PAUSED: (SearchState.RUNNING, SearchState.PAUSED),
    SearchState.STOPPING: (SearchState.RUNNING, SearchState.STOPPING),
    SearchState.COMPLETED: (SearchState.RUNNING, SearchState.STOPPING, SearchState.COMPLETED),
    SearchState.CANCELLED: (SearchState.STOPPING, SearchState.CANCELLED),
    SearchState.FAILED: (SearchState.RUNNING, SearchState.STOPPING, SearchState.FAILED),
}
"""How a search comes to be in a state."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Writes rows into a database; every method gives the id of what it wrote."""

    database: Database

    def search(self, spec: SearchSpec = SPEC, state: SearchState = SearchState.RUNNING, caller: Caller = LOCAL) -> str:
        """A search in a state."""
        with self.database.write() as session:
            search = searches.submit(session, spec, None, caller).search
            for step in _PATHS[state]:
                move_search(session, search, step)
            return search.id

    def trial(self, search_id: str, theta: Theta, replicate: int = 0) -> str:
        """A proposed trial."""
        (trial_id,) = self.all_proposed(search_id, [theta], replicate)
        return trial_id

    def all_proposed(self, search_id: str, thetas: Iterable[Theta], replicate: int = 0) -> list[str]:
        """Proposed trials of these structures."""
        with self.database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            return [_propose(session, search, theta, replicate).id for theta in thetas]

    def lease(self, search_id: str) -> Lease:
        """The lease of a runner that carries the search out; a new one where nobody does."""
        with self.database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            if search.runner_id is None:
                search.runner_id, search.epoch = leases.enrol(session, 60).id, search.epoch + 1
            return Lease.of(search)

    def attempt(self, trial_id: str, slot: str = "slot") -> str:
        """A running attempt at a trial."""
        lease = self.lease(trial_id.split("-")[0])
        with self.database.write() as session:
            search = leases.held(session, lease)
            return trials.start(session, search, repositories.trial_by_id(session, trial_id), slot).id

    def outcome(self, attempt_id: str, outcome: Outcome) -> None:
        """The end of an attempt."""
        lease = self.lease(attempt_id.split("-")[0])
        with self.database.write() as session:
            trials.record_outcomes(session, lease, {attempt_id: outcome})

    def progress(self, attempt_id: str, *points: Report) -> None:
        """What an attempt reports, each point by itself."""
        lease = self.lease(attempt_id.split("-")[0])
        for report in points:
            with self.database.write() as session:
                trials.record_progress(session, lease, attempt_id, report)

    def loss(self, attempt_id: str, reason: str = "the node is gone") -> None:
        """The loss of an attempt's slot."""
        lease = self.lease(attempt_id.split("-")[0])
        with self.database.write() as session:
            trials.record_loss(session, lease, attempt_id, reason)

    def completed(self, search_id: str, theta: Theta, loss: float, replicate: int = 0) -> str:
        """A trial with a loss."""
        (trial_id,) = self.all_completed(search_id, [(theta, loss)], replicate)
        return trial_id

    def all_completed(self, search_id: str, losses: Iterable[tuple[Theta, float]], replicate: int = 0) -> list[str]:
        """Trials with these losses, one after the other."""
        lease = self.lease(search_id)
        with self.database.write() as session:
            search = leases.held(session, lease)
            return [
                _complete(session, lease, search, _propose(session, search, theta, replicate), loss)
                for theta, loss in losses
            ]


def _propose(session: Session, search: Search, theta: Theta, replicate: int) -> Trial:
    structure = structure_of(theta, search.spec.proxy)
    proposal = Proposal(
        number=search.num_trials,
        replicate=replicate,
        structure=structure,
        proxy=search.spec.proxy,
        digest=structure.digest,
        seed=1000 + search.num_trials,
        history_size=search.num_finished,
    )
    return trials.add(session, search, proposal)


def _complete(session: Session, lease: Lease, search: Search, trial: Trial, loss: float) -> str:
    attempt = trials.start(session, search, trial, "slot")
    session.flush()
    outcome = Outcome.completed(loss=loss, curve=(point(1, loss),), seconds=1.0)
    trials.record_outcomes(session, lease, {attempt.id: outcome})
    return trial.id


def point(step: int, loss: float = 1.0) -> Report:
    """A point of a learning curve."""
    return Report(step=step, examples=128 * step, train_flops=1e5 * step, loss=loss)


def contents(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, by the table's name, in the order of the primary keys."""
    with database.read() as session:
        return {
            table.name: [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key))]
            for table in Base.metadata.sorted_tables
        }
