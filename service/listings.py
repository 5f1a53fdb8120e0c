"""Pages of searches, of the trials of one, and of structures over all, by filters and in the order of any metric.

A list in the order of a metric that a trial may lack (``loss``, ``latency``, ``peak_memory``, ``seconds``) holds those
trials that have it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from sqlalchemy import Boolean, ColumnElement, Select, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute, Session, selectinload
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from einlayers.taxonomy import Family
from search.states import SearchState, TrialState
from service.models import Origin, Search, Trial
from service.paging import Key, Page, PageRequest, page_of

Metric = Literal["loss", "omega", "psi", "nu", "params", "macs", "latency", "peak_memory", "seconds"]
METRICS: Mapping[Metric, InstrumentedAttribute[Any]] = {name: getattr(Trial, name) for name in get_args(Metric)}
"""The columns of a trial that lists can be filtered and ordered by."""

TO_SHOW = (selectinload(Trial.search), selectinload(Trial.attempts))
"""What trials are read with: one more query each for a page, none for a row. Joined, a search would be parsed for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which trials a list holds: all that are not excluded, unless something is asked for; bounds are inclusive."""

    state: TrialState | None = None
    family: Family | None = None
    origin: Origin | None = None
    proxy_kind: str | None = None
    at_least: Mapping[Metric, float] = field(default_factory=lambda: MappingProxyType({}))
    at_most: Mapping[Metric, float] = field(default_factory=lambda: MappingProxyType({}))
    include_excluded: bool = False


EVERYTHING = Filters(include_excluded=True)
"""No filter."""


def searches(
    session: Session, page: PageRequest, *, owner: str | None = None, states: Iterable[SearchState] | None = None
) -> Page[Search]:
    """The searches, of one owner or of all, in any of these states or in any, newest first.

    Raises:
        BadPageToken: see ``page_of``.
    """
    query = select(Search)
    query = query if owner is None else query.where(Search.owner == owner)
    query = query if states is None else query.where(Search.state.in_(sorted(states)))
    return page_of(session, query, page, [Key(Search.created_at), Key(Search.id)], descending=True)


def trials(
    session: Session,
    search_id: str,
    page: PageRequest,
    filters: Filters = EVERYTHING,
    *,
    order_by: Metric | None = None,
    descending: bool = False,
) -> Page[Trial]:
    """The trials of a search, with it and their attempts, by number or by a metric and then by number.

    Raises:
        BadPageToken: see ``page_of``.
    """
    query = _filtered(filters).where(Trial.search_id == search_id)
    if order_by is None:
        return page_of(session, query, page, [Key(Trial.number)], descending=descending)
    return _by(session, query, page, order_by, Trial.number, descending)


def structures(
    session: Session,
    page: PageRequest,
    filters: Filters,
    order_by: Metric = "loss",
    descending: bool = False,
) -> Page[Trial]:
    """The completed trials of all searches, with their search and their attempts, by a metric and then by id.

    Raises:
        BadPageToken: see ``page_of``.
    """
    query = _filtered(filters).where(Trial.state == TrialState.COMPLETED)
    return _by(session, query, page, order_by, Trial.id, descending)


def _by(
    session: Session,
    query: Select[Trial],
    page: PageRequest,
    metric: Metric,
    last: InstrumentedAttribute[Any],
    descending: bool,
) -> Page[Trial]:
    column = METRICS[metric]
    query = query.where(column.is_not(None)) if column.expression.nullable else query
    return page_of(session, query, page, [Key(column), Key(last)], descending=descending)


def _filtered(filters: Filters) -> Select[Trial]:
    query = select(Trial).options(*TO_SHOW)
    query = query if filters.state is None else query.where(Trial.state == filters.state)
    query = query if filters.include_excluded else query.where(Trial.excluded_at.is_(None))
    return query.where(*(_usual(condition) for condition in _conditions(filters)))


def _conditions(filters: Filters) -> Iterable[ColumnElement[bool]]:
    if filters.family is not None:
        yield Trial.family == filters.family
    if filters.origin is not None:
        yield Trial.origin == filters.origin
    if filters.proxy_kind is not None:
        yield Trial.search_id.in_(select(Search.id).where(Search.proxy_kind == filters.proxy_kind))
    yield from (METRICS[metric] >= bound for metric, bound in filters.at_least.items())
    yield from (METRICS[metric] <= bound for metric, bound in filters.at_most.items())


class _usual(FunctionElement[bool]):
    """A condition that many rows keep.

    SQLite has no statistics of its rows. It would take the index of a bound, and sort half of the table for one page of
    it, where the index of the order gives the page at once. Postgres knows which of the two is cheaper.
    """

    type = Boolean()
    inherit_cache = True


@compiles(_usual)
def _plain(element: _usual, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)})"


@compiles(_usual, "sqlite")
def _likely(element: _usual, compiler: SQLCompiler, **options: Any) -> str:
    return f"likely({compiler.process(element.clauses, **options)})"
