"""Every SELECT. Functions of a session; none of them writes."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, joinedload, selectinload

from search.proposals import PastTrial
from search.states import AttemptState, SearchState, TrialState
from service.errors import BadPageToken, NotFound
from service.models import Attempt, Measurement, Search, Trial

Row = TypeVar("Row")

Metric = Literal["loss", "omega", "psi", "nu", "params", "macs"]
METRICS: Mapping[str, InstrumentedAttribute[Any]] = {
    "loss": Trial.loss,
    "omega": Trial.omega,
    "psi": Trial.psi,
    "nu": Trial.nu,
    "params": Trial.params,
    "macs": Trial.macs,
}
"""The columns of a trial that lists can be filtered and ordered by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """How many rows, after which."""

    size: int
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Row]):
    """Some rows of a list, and the token of the next ones."""

    items: Sequence[Row]
    next_token: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a search is: trials by state, those that ended, and the lowest loss so far."""

    max_trials: int
    counts: Mapping[TrialState, int] = field(default_factory=dict)
    best_loss: float | None = None

    @property
    def finished(self) -> int:
        """How many trials ended, one way or another."""
        return sum(count for state, count in self.counts.items() if state.is_final)

    @property
    def alive(self) -> int:
        """How many trials run or wait."""
        return sum(count for state, count in self.counts.items() if not state.is_final)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedStructure:
    """A structure of a search with its replicates: the mean of their losses, its spread, and each with its seed."""

    trial: Trial
    replicates: Sequence[Trial]

    @property
    def loss(self) -> float:
        """The mean held-out loss, in nats."""
        return sum(self._losses) / len(self._losses)

    @property
    def loss_sd(self) -> float | None:
        """The standard deviation between replicates; None for a single one."""
        if len(self._losses) < 2:
            return None
        return float((sum((loss - self.loss) ** 2 for loss in self._losses) / (len(self._losses) - 1)) ** 0.5)

    @property
    def _losses(self) -> list[float]:
        return [trial.loss for trial in self.replicates if trial.loss is not None]


def search_by_id(session: Session, search_id: str, *, lock: bool = False) -> Search:
    """A search; ``lock`` holds off other writers of it until the transaction ends.

    Raises:
        NotFound: there is none.
    """
    search = session.get(Search, search_id, with_for_update=lock or None)
    if search is None:
        raise NotFound("search", search_id)
    return search


def searches(session: Session, page: PageRequest) -> Page[Search]:
    """All searches, newest first."""
    return _page(
        session,
        select(Search),
        page,
        [_Key(Search.created_at, _read_time), _Key(Search.id, _read_text)],
        descending=True,
    )


def searches_in(session: Session, states: Iterable[SearchState]) -> Sequence[Search]:
    """The searches in any of these states, oldest first."""
    query = select(Search).where(Search.state.in_(list(states))).order_by(Search.created_at, Search.id)
    return session.scalars(query).all()


def progress_of(session: Session, of: Sequence[Search]) -> dict[str, Progress]:
    """The progress of each search, by its id."""
    query = (
        select(Trial.search_id, Trial.state, func.count(), func.min(Trial.loss))
        .where(Trial.search_id.in_([search.id for search in of]))
        .group_by(Trial.search_id, Trial.state)
    )
    counts: dict[str, dict[TrialState, int]] = defaultdict(dict)
    best: dict[str, float] = {}
    for search_id, state, count, loss in session.execute(query):
        counts[search_id][state] = count
        if loss is not None:
            best[search_id] = min(loss, best.get(search_id, loss))
    return {
        search.id: Progress(
            max_trials=search.spec.budget.max_trials, counts=counts[search.id], best_loss=best.get(search.id)
        )
        for search in of
    }


def history(session: Session, search_id: str) -> list[PastTrial]:
    """The trials of a search as the next proposal sees them, in order of their number."""
    query = (
        select(Trial.theta, Trial.digest, Trial.state, Trial.loss)
        .where(Trial.search_id == search_id)
        .order_by(Trial.number)
    )
    return [
        PastTrial(theta=theta, digest=digest, state=state, loss=loss)
        for theta, digest, state, loss in session.execute(query)
    ]


def num_trials(session: Session, search_id: str, *states: TrialState) -> int:
    """How many trials of a search there are, in any of these states or, without states, at all."""
    query = select(func.count()).select_from(Trial).where(Trial.search_id == search_id)
    return session.scalar(query.where(Trial.state.in_(states)) if states else query) or 0


def num_finished(session: Session, search_id: str) -> int:
    """How many trials of a search have ended."""
    return num_trials(session, search_id, *(state for state in TrialState if state.is_final))


def next_proposed(session: Session, search_id: str) -> Trial | None:
    """The first trial that waits to run: proposed before, or lost with its slot."""
    query = (
        select(Trial)
        .where(Trial.search_id == search_id, Trial.state == TrialState.PROPOSED)
        .order_by(Trial.number)
        .limit(1)
    )
    return session.scalars(query).first()


def trials_in(session: Session, search_id: str, state: TrialState) -> Sequence[Trial]:
    """The trials of a search in a state."""
    return session.scalars(select(Trial).where(Trial.search_id == search_id, Trial.state == state)).all()


def trial_by_id(session: Session, trial_id: str) -> Trial:
    """A trial with its search and its attempts.

    Raises:
        NotFound: there is none.
    """
    query = select(Trial).where(Trial.id == trial_id).options(*_WHOLE_TRIAL)
    trial = session.scalars(query).unique().one_or_none()
    if trial is None:
        raise NotFound("trial", trial_id)
    return trial


def trials(session: Session, search_id: str, page: PageRequest, state: TrialState | None = None) -> Page[Trial]:
    """The trials of a search by number, all or those in a state."""
    query = select(Trial).where(Trial.search_id == search_id).options(*_WHOLE_TRIAL)
    query = query.where(Trial.state == state) if state else query
    return _page(session, query, page, [_Key(Trial.number, _read_ordinal)])


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


def best(session: Session, search_id: str, limit: int) -> list[RankedStructure]:
    """The structures of a search with the lowest mean loss over their replicates, best first."""
    completed = (Trial.search_id == search_id, Trial.state == TrialState.COMPLETED)
    ranking = (
        select(Trial.digest)
        .where(*completed)
        .group_by(Trial.digest)
        .order_by(func.avg(Trial.loss), func.min(Trial.number))
        .limit(limit)
    )
    digests = session.scalars(ranking).all()
    query = select(Trial).where(*completed, Trial.digest.in_(digests)).order_by(Trial.number).options(*_WHOLE_TRIAL)
    replicates: dict[str, list[Trial]] = defaultdict(list)
    for trial in session.scalars(query).unique():
        replicates[trial.digest].append(trial)
    return [RankedStructure(trial=replicates[digest][0], replicates=replicates[digest]) for digest in digests]


def structures(
    session: Session,
    page: PageRequest,
    *,
    order_by: Metric = "loss",
    descending: bool = False,
    family: str | None = None,
    proxy_kind: str | None = None,
    at_least: Mapping[str, float],
    at_most: Mapping[str, float],
) -> Page[Trial]:
    """Completed trials of all searches within bounds on their metrics, ordered by one of them."""
    query = select(Trial).where(Trial.state == TrialState.COMPLETED).options(*_WHOLE_TRIAL)
    query = query.where(*(METRICS[name] >= bound for name, bound in at_least.items()))
    query = query.where(*(METRICS[name] <= bound for name, bound in at_most.items()))
    if family is not None:
        query = query.where(Trial.family == family)
    if proxy_kind is not None:
        query = query.join(Search, Search.id == Trial.search_id).where(Search.proxy_kind == proxy_kind)
    read = _read_whole if order_by in ("params", "macs") else _read_number
    keys = [_Key(METRICS[order_by], read), _Key(Trial.id, _read_text)]
    return _page(session, query, page, keys, descending=descending)


def attempt_by_id(session: Session, attempt_id: str) -> Attempt | None:
    """An attempt with its trial."""
    query = select(Attempt).where(Attempt.id == attempt_id).options(joinedload(Attempt.trial))
    return session.scalars(query).one_or_none()


def running_attempts(session: Session, search_id: str | None = None) -> Sequence[Attempt]:
    """The attempts that run, of one search or of all, with their trials."""
    query = select(Attempt).join(Attempt.trial).where(Attempt.state == AttemptState.RUNNING)
    query = query.where(Trial.search_id == search_id) if search_id else query
    return session.scalars(query.options(joinedload(Attempt.trial)).order_by(Attempt.id)).all()


def num_attempts(session: Session, trial_id: str) -> int:
    """How often a trial was tried."""
    return session.scalar(select(func.count()).select_from(Attempt).where(Attempt.trial_id == trial_id)) or 0


def steps_measured(session: Session, attempt_id: str) -> set[int]:
    """The steps at which an attempt's learning curve has points."""
    return set(session.scalars(select(Measurement.step).where(Measurement.attempt_id == attempt_id)))


_WHOLE_TRIAL = (joinedload(Trial.search), selectinload(Trial.attempts))


@dataclass(frozen=True, slots=True)
class _Key:
    """A column that a list is ordered by, and how its value is read back out of a token."""

    column: InstrumentedAttribute[Any]
    read: Callable[[Any], Any]


def _page(
    session: Session, query: Select[Row], page: PageRequest, keys: Sequence[_Key], *, descending: bool = False
) -> Page[Row]:
    """One page by keyset: rows after the last one seen, in an order that ends with a unique column."""
    order = [key.column.desc() if descending else key.column.asc() for key in keys]
    # A token is good for one list in one order only.
    list_name = " ".join(str(column) for column in order)
    if page.token is not None:
        query = query.where(_after(keys, _decode(page.token, list_name, keys), descending))
    rows = session.scalars(query.order_by(*order).limit(page.size + 1)).unique().all()
    items = rows[: page.size]
    more = len(rows) > page.size
    last = [getattr(items[-1], key.column.key) for key in keys] if more else []
    return Page(items=items, next_token=_encode(list_name, last) if more else None)


def _after(keys: Sequence[_Key], seen: Sequence[Any], descending: bool) -> ColumnElement[bool]:
    def beyond(key: _Key, value: Any) -> ColumnElement[bool]:
        return key.column.__lt__(value) if descending else key.column.__gt__(value)

    return or_(
        *(
            and_(*(keys[j].column == seen[j] for j in range(i)), beyond(key, value))
            for i, (key, value) in enumerate(zip(keys, seen, strict=True))
        )
    )


def _encode(list_name: str, values: Sequence[Any]) -> str:
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    return urlsafe_b64encode(json.dumps([list_name, *plain]).encode()).decode().rstrip("=")


def _decode(token: str, list_name: str, keys: Sequence[_Key]) -> list[Any]:
    try:
        name, *values = json.loads(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if name != list_name:
            raise BadPageToken
        return [key.read(value) for value, key in zip(values, keys, strict=True)]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadPageToken from error


def _read_time(value: Any) -> datetime:
    time = datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError(value)
    return time.astimezone(UTC)


def _read_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
        raise TypeError(value)
    return float(value)


def _read_whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise TypeError(value)
    return value


def _read_ordinal(value: Any) -> int:
    number = _read_whole(value)
    if number >= 2**31:  # the column is no wider, and Postgres refuses to compare
        raise ValueError(value)
    return number


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise TypeError(value)
    return value
