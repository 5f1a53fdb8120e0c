"""Rows by their ids, and what the runner needs to know: SELECTs only. Lists for people are in ``service.listings``."""

from collections.abc import Collection, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload, selectinload

from search.proposals import PastTrial
from search.states import AttemptState, SearchState, TrialState
from service.errors import NotFound
from service.models import Attempt, Measurement, Search, Trial

WHOLE_TRIAL = (joinedload(Trial.search), selectinload(Trial.attempts))
"""What a trial is read with, where it is going to be shown."""


def search_by_id(session: Session, search_id: str, *, lock: bool = False) -> Search:
    """A search; ``lock`` reads it anew and holds off other writers until the transaction ends.

    Raises:
        NotFound: there is none.
    """
    # Locked once is locked until the end; to read it anew every time would cost a round trip every time.
    locked: dict[str, Search] = session.info.setdefault("locked", {})
    search = locked.get(search_id) or session.get(Search, search_id, with_for_update=lock or None)
    if search is None:
        raise NotFound("search", search_id)
    if lock:
        locked[search_id] = search
    return search


def num_searches(session: Session, states: Collection[SearchState], *, runner_id: str | None = None) -> int:
    """How many searches are in any of these states, held by anybody or by one runner."""
    query = select(func.count()).select_from(Search).where(Search.state.in_(list(states)))
    return session.scalar(query.where(Search.runner_id == runner_id) if runner_id else query) or 0


def searches_of(session: Session, runner_id: str) -> Sequence[Search]:
    """The searches that a runner holds, oldest first."""
    query = select(Search).where(Search.runner_id == runner_id).order_by(Search.created_at, Search.id)
    return session.scalars(query).all()


PAST = (
    Trial.theta,
    Trial.digest,
    Trial.state,
    func.coalesce(Trial.loss, Trial.expected_loss).label("loss"),
    Trial.excluded_at.is_not(None).label("excluded"),
    Trial.params,
    Trial.macs,
    Trial.latency,
    Trial.peak_memory,
    Trial.variant,
)
"""What proposals see of any trial, by the names of ``PastTrial``."""


def history(session: Session, search_id: str, *, since: int = -1) -> list[tuple[int, PastTrial]]:
    """The trials of a search as the next proposal sees them, with their numbers: those changed after event ``since``."""
    query = select(Trial.number, *PAST, Trial.reused_from)
    query = query.where(Trial.search_id == search_id, Trial.changed > since).order_by(Trial.number)
    rows = session.execute(query)
    _, *names = rows.keys()
    return [(number, PastTrial(**dict(zip(names, past, strict=True)))) for number, *past in rows]


def next_proposed(session: Session, search_id: str, number: int) -> Sequence[Trial]:
    """The first so many trials that wait to run: proposed before, or back from an attempt that was no end."""
    query = (
        select(Trial)
        .where(Trial.search_id == search_id, Trial.state == TrialState.PROPOSED)
        .order_by(Trial.number)
        .limit(number)
    )
    return session.scalars(query).all()


def trials_in(session: Session, search_id: str, state: TrialState) -> Sequence[Trial]:
    """The trials of a search in a state."""
    return session.scalars(select(Trial).where(Trial.search_id == search_id, Trial.state == state)).all()


def num_replicates(session: Session, search_id: str, digest: str) -> int:
    """How many trials of a search have this structure."""
    query = select(func.count()).select_from(Trial).where(Trial.search_id == search_id, Trial.digest == digest)
    return session.scalar(query) or 0


def trial_by_id(session: Session, trial_id: str) -> Trial:
    """A trial with its search and its attempts.

    Raises:
        NotFound: there is none.
    """
    query = select(Trial).where(Trial.id == trial_id).options(*WHOLE_TRIAL)
    trial = session.scalars(query).unique().one_or_none()
    if trial is None:
        raise NotFound("trial", trial_id)
    return trial


def measurements(session: Session, trial_id: str) -> Sequence[Measurement]:
    """The learning curve of a trial's latest attempt, by step."""
    latest = select(func.max(Attempt.number)).where(Attempt.trial_id == trial_id).scalar_subquery()
    query = (
        select(Measurement)
        .join(Attempt, Attempt.id == Measurement.attempt_id)
        .where(Attempt.trial_id == trial_id, Attempt.number == latest)
        .order_by(Measurement.step)
    )
    return session.scalars(query).all()


def lowest_loss(session: Session, search_id: str, *, among_first: int | None = None) -> float | None:
    """The lowest loss among the completed trials of a search that are not excluded, or among so many that ended first."""
    query = select(func.min(Trial.loss)).where(
        Trial.search_id == search_id, Trial.state == TrialState.COMPLETED, Trial.excluded_at.is_(None)
    )
    if among_first is not None:
        query = query.where(Trial.finish_order < among_first)
    return session.scalar(query)


def begin_of_last(session: Session, search_id: str, number: int) -> int | None:
    """The place, in the order of ends, of the first of the last ``number`` trials that were trained; None where there are
    not so many."""
    query = select(Trial.finish_order).where(
        Trial.search_id == search_id, Trial.finish_order.is_not(None), Trial.reused_from.is_(None)
    )
    return session.scalar(query.order_by(Trial.finish_order.desc()).offset(number - 1).limit(1))


def attempt_by_id(session: Session, attempt_id: str) -> Attempt | None:
    """An attempt with its trial."""
    return session.get(Attempt, attempt_id, options=[joinedload(Attempt.trial)])


def attempts(session: Session, attempt_ids: Collection[str]) -> Sequence[Attempt]:
    """Several attempts with their trials, those that there are."""
    query = select(Attempt).where(Attempt.id.in_(list(attempt_ids))).options(joinedload(Attempt.trial))
    return session.scalars(query).unique().all()


def running_attempts(session: Session, search_ids: Collection[str]) -> Sequence[Attempt]:
    """The attempts of these searches that run, with their trials."""
    query = (
        select(Attempt)
        .join(Attempt.trial)
        .where(Attempt.state == AttemptState.RUNNING, Trial.search_id.in_(list(search_ids)))
        .options(joinedload(Attempt.trial))
        .order_by(Attempt.id)
    )
    return session.scalars(query).unique().all()


def num_attempts(session: Session, trial_id: str, *states: AttemptState) -> int:
    """How often a trial was tried, or how many of its attempts are in any of these states."""
    query = select(func.count()).select_from(Attempt).where(Attempt.trial_id == trial_id)
    return session.scalar(query.where(Attempt.state.in_(states)) if states else query) or 0


def steps_measured(session: Session, attempt_id: str) -> set[int]:
    """The steps at which an attempt's learning curve has points."""
    return set(session.scalars(select(Measurement.step).where(Measurement.attempt_id == attempt_id)))
