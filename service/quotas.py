"""How much an owner may have: unfinished searches at a time, training FLOPs in a day.

What a search may still use counts from the moment when it is granted: a quota that looked at finished work alone would be
overrun by what is queued. A search that only time limits counts with what its trials have reserved so far, and one that has
ended, with what they reserved in all: who cancels a search by mistake submits it anew.

The limits are those of the caller's key, or else of the settings; what they limit is all that an owner has, whichever keys
it was submitted with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from search.spec import Budget, SearchSpec
from search.states import SearchState
from service import repositories
from service.clock import now
from service.errors import TooMany
from service.keys import Caller
from service.models import Search
from service.settings import Settings

WINDOW = timedelta(days=1)
"""How long what was granted counts."""

_RETRY_ACTIVE_AFTER = 60
_UNFINISHED = [state for state in SearchState if not state.is_final]
_HAIR = 1 + 1e-9  # three times a third of a quota is the quota
_LOCK = 0x71756F74  # "quot": an advisory lock of Postgres is named by two numbers, and this is the first of all of ours


def check_submit(session: Session, caller: Caller, settings: Settings, spec: SearchSpec) -> None:
    """Go on only if the caller may have this search too.

    What was counted stays true until the transaction ends: another one that asks for the same owner waits.

    Raises:
        TooMany: the owner has as many unfinished searches as allowed, or not as many training FLOPs left.
    """
    most_active, most_flops = _limits(caller, settings)
    if most_active is None and most_flops is None:
        return
    _lock(session, caller.owner)
    if most_active is not None:
        _check_active(session, caller.owner, most_active)
    if most_flops is not None:
        wanted = spec.train_flops(spec.budget) or 0.0
        _check_flops(_granted(session, caller.owner), wanted, most_flops, caller.owner, now(session))


def check_extension(session: Session, caller: Caller, settings: Settings, search_id: str, new_budget: Budget) -> None:
    """Go on only if this search, which still has its old budget, may have the new one, as in ``check_submit``.

    Of a search that was submitted before the window, only what it gains is asked for. A budget that grants no more than
    the old one is always allowed.

    Raises:
        NotFound, Forbidden: there is no such search, or it is somebody else's.
        TooMany: the owner of the search has not as many training FLOPs left.
    """
    _, most = _limits(caller, settings)
    if most is None:
        return
    search = repositories.search_by_id(session, search_id, lock=True)
    caller.require_owner(search)
    before, after = search.spec.train_flops(search.spec.budget), search.spec.train_flops(new_budget)
    if before is not None and after is not None and after <= before:
        return
    _lock(session, search.owner)
    granted = _granted(session, search.owner)
    others = [grant for grant in granted if grant.search_id != search.id]
    wanted = search.train_flops if after is None else after
    if len(others) == len(granted):  # it was submitted before
        wanted -= search.train_flops if before is None else before
    _check_flops(others, max(0.0, wanted), most, search.owner, now(session))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grant:
    """What one search of the window counts with."""

    search_id: str
    at: datetime
    train_flops: float


def _limits(caller: Caller, settings: Settings) -> tuple[int | None, float | None]:
    active, flops = caller.limits.max_active_searches, caller.limits.max_train_flops_per_day
    return (
        settings.max_active_searches if active is None else active,
        settings.max_train_flops_per_day if flops is None else flops,
    )


def _lock(session: Session, owner: str) -> None:
    # An SQLite writer has the database for itself anyway.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCK, func.hashtext(owner))))


def _check_active(session: Session, owner: str, most: int) -> None:
    query = select(func.count()).where(Search.owner == owner, Search.state.in_(_UNFINISHED))
    if (active := session.scalars(query).one()) >= most:
        raise TooMany(
            f"{owner} may have {most} unfinished searches and has {active}; wait for one to end, or cancel one",
            retry_after=_RETRY_ACTIVE_AFTER,
        )


def _granted(session: Session, owner: str) -> list[_Grant]:
    """The grants of the window, oldest first."""
    query = (
        select(Search.id, Search.spec, Search.state, Search.train_flops, Search.created_at)
        .where(Search.owner == owner, Search.created_at > now(session) - WINDOW)
        .order_by(Search.created_at, Search.id)
    )
    return [
        _Grant(search_id=search_id, at=created_at, train_flops=_counted(spec, state, reserved))
        for search_id, spec, state, reserved, created_at in session.execute(query)
    ]


def _counted(spec: SearchSpec, state: SearchState, reserved: float) -> float:
    budgeted = None if state.is_final else spec.train_flops(spec.budget)
    return reserved if budgeted is None else budgeted


def _check_flops(granted: Sequence[_Grant], wanted: float, most: float, owner: str, at: datetime) -> None:
    used = sum(grant.train_flops for grant in granted)
    if _fits(used, wanted, most):
        return
    remedy = "ask for less, or later" if _fits(0.0, wanted, most) else "no waiting helps: ask for less"
    raise TooMany(
        f"{owner} may use {most:g} training FLOPs in 24 hours, and has been granted {used:g} of them; "
        f"this asks for {wanted:g} more; {remedy}",
        retry_after=_seconds_until_fits(granted, wanted, most, at),
    )


def _seconds_until_fits(granted: Sequence[_Grant], wanted: float, most: float, at: datetime) -> float:
    used = sum(grant.train_flops for grant in granted)
    for grant in granted:
        used -= grant.train_flops
        if _fits(used, wanted, most):
            return (grant.at + WINDOW - at).total_seconds()
    return WINDOW.total_seconds()


def _fits(used: float, wanted: float, most: float) -> bool:
    # Where all is used up, a search that only time limits, which asks for nothing yet, does not fit either.
    return used < most and used + wanted <= most * _HAIR
