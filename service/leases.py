"""Who carries a search out: leases of runners, by the database's clock, with an epoch that fences what comes late.

A runner's row says until when it is alive; it says so anew with every beat. The searches that a runner holds are its own
until then; afterwards any runner may claim them, which raises the epoch. Whoever writes for a search locks its row and
compares runner and epoch first: a runner that slept through its lease can do no harm, and finds out at once.
"""

import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import ceil

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, update
from sqlalchemy.orm import Session

from search.states import SearchState
from service import repositories
from service.clock import database_time, now
from service.models import Runner, RunnerStats, Search

ACTIVE = (SearchState.QUEUED, SearchState.RUNNING, SearchState.STOPPING)
"""The states of searches that want a runner; a paused one needs it until its last trial has come to rest."""

_FORGET_AFTER = timedelta(days=1)


class LeaseLost(Exception):
    """Another runner carries the search out by now; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A runner's right to write for one search, for as long as the search still names this runner and this epoch."""

    search_id: str
    runner_id: str
    epoch: int

    @classmethod
    def of(cls, search: Search) -> "Lease":
        """The lease under which a search is carried out now."""
        assert search.runner_id is not None, "nobody holds this search"
        return cls(search_id=search.id, runner_id=search.runner_id, epoch=search.epoch)


def enrol(session: Session, lease_seconds: float, ray: str = "ok") -> Runner:
    """A new runner, alive from now on; ``ray``: how its Ray does."""
    session.execute(delete(Runner).where(Runner.expires_at < now(session) - _FORGET_AFTER))
    return _add(session, secrets.token_hex(6), lease_seconds, RunnerStats().found_ray(ray, now(session)))


def renew(session: Session, runner_id: str, lease_seconds: float, stats: RunnerStats) -> None:
    """Say that the runner is alive, and how it does."""
    runner = session.get(Runner, runner_id)
    if runner is None:  # forgotten: it was away for very long
        runner = _add(session, runner_id, lease_seconds, stats)
    runner.seen_at, runner.stats = now(session), stats
    runner.expires_at = runner.seen_at + timedelta(seconds=lease_seconds)
    session.flush()


def leave(session: Session, runner_id: str) -> None:
    """Say that the runner ends: what it holds is free at once."""
    session.execute(update(Runner).where(Runner.id == runner_id).values(expires_at=now(session)))


def alive(session: Session) -> Sequence[Runner]:
    """The runners whose lease has not expired."""
    return session.scalars(select(Runner).where(Runner.expires_at > database_time()).order_by(Runner.id)).all()


def any_free(session: Session) -> bool:
    """Whether any search waits to be claimed."""
    return bool(session.scalar(select(exists().where(_is_free()))))


def claim(session: Session, runner_id: str) -> list[Lease]:
    """Take searches that nobody holds, or whose runner is gone, up to a fair share of all that are active.

    On Postgres rows that another runner is just claiming are skipped; on SQLite there is one writer at a time anyway.
    """
    held = repositories.num_searches(session, ACTIVE, runner_id=runner_id)
    share = ceil(repositories.num_searches(session, ACTIVE) / max(1, len(alive(session))))
    query = (
        select(Search)
        .where(_is_free())
        .order_by(Search.created_at, Search.id)
        .limit(max(1 if held == 0 else 0, share - held))
        .with_for_update(skip_locked=True)
    )
    claimed = session.scalars(query).all()
    for search in claimed:
        search.runner_id, search.epoch = runner_id, search.epoch + 1
    if not claimed:
        _give_back(session, runner_id, held - share)
    return [Lease.of(search) for search in claimed]


def held(session: Session, lease: Lease) -> Search:
    """The search of a lease, locked until the transaction ends.

    Raises:
        LeaseLost: another runner holds it, or nobody.
    """
    search = repositories.search_by_id(session, lease.search_id, lock=True)
    if not holds(search, lease):
        raise LeaseLost(f"runner {lease.runner_id} does not hold search {search.id} any more")
    return search


def holds(search: Search, lease: Lease) -> bool:
    """Whether the search, as it was just read under its lock, is carried out under this lease."""
    return (search.runner_id, search.epoch) == (lease.runner_id, lease.epoch)


def release(search: Search) -> None:
    """Give a locked search back: it has ended, or rests."""
    search.runner_id = None


def _add(session: Session, runner_id: str, lease_seconds: float, stats: RunnerStats) -> Runner:
    time = now(session)
    runner = Runner(
        id=runner_id,
        host=socket.gethostname()[:200],
        pid=os.getpid(),
        started_at=time,
        seen_at=time,
        expires_at=time + timedelta(seconds=lease_seconds),
        stats=stats,
    )
    session.add(runner)
    session.flush()
    return runner


def _give_back(session: Session, runner_id: str, number: int) -> None:
    """Give up searches that have not begun, for runners that have come since."""
    waiting = (Search.runner_id == runner_id, Search.state == SearchState.QUEUED)
    query = select(Search).where(*waiting).limit(max(0, number)).with_for_update(skip_locked=True)
    for search in session.scalars(query):
        release(search)


def _is_free() -> ColumnElement[bool]:
    """Whether a search wants a runner and has none that is alive."""
    resting = and_(Search.state == SearchState.PAUSED, Search.runner_id.is_not(None))
    living = exists().where(Runner.id == Search.runner_id, Runner.expires_at > database_time())
    ready = or_(~Search.awaits_calibration, Search.state == SearchState.STOPPING)
    return and_(or_(Search.state.in_(ACTIVE), resting), ready, or_(Search.runner_id.is_(None), ~living))
