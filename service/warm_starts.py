"""What a search inherits from earlier ones: the results that these had when it was submitted.

A source goes on as it likes: the order of its ends says which of its results were there. So a proposal can be recomputed at
any time. A result that is excluded from its search counts for nobody, from then on.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from einlayers.errors import FieldError
from search.proposals import Inherited
from search.spec import SearchSpec
from search.states import TrialState
from search.warm_start import check_source
from service import repositories
from service.errors import InvalidValue
from service.models import Search, Trial, WarmStart

MAX_INHERITED = 20_000
"""How many ends of trials the sources may have, together: whoever proposes has all their results in memory."""

_RESULTS = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.INFEASIBLE)
"""Ends that say something about a structure. The others are faults, and wishes."""

_Place = tuple[int, int]
"""Of a result: which source it comes from, and its trial's number there."""


def sources(session: Session, spec: SearchSpec) -> Sequence[Search]:
    """The searches that a search starts from, once its learning rate is known.

    Raises:
        InvalidValue: there is no such search, or it is on another proxy; or together they have too many trials.
    """
    found = [_source(session, spec, source_id) for source_id in spec.warm_start]
    if (num_finished := sum(source.num_finished for source in found)) > MAX_INHERITED:
        expected = f"searches in which at most {MAX_INHERITED} trials have ended, together"
        raise InvalidValue("", FieldError("warm_start", expected=expected, got=num_finished))
    return found


def record(session: Session, search: Search, sources: Sequence[Search]) -> None:
    """Write down what a search that is being submitted inherits."""
    rows = [
        WarmStart(
            search_id=search.id,
            number=number,
            source_id=source.id,
            num_finished=source.num_finished,
            num_results=0,
            num_in_space=0,
        )
        for number, source in enumerate(sources)
    ]
    session.add_all(rows)
    session.flush()
    cube = search.spec.cube
    for (number, _), result in _distinct(_read(session, search.id)).items():
        rows[number].num_results += 1
        rows[number].num_in_space += cube.to_unit(result.theta, result.variant) is not None


def of(session: Session, search_ids: Collection[str]) -> Mapping[str, Sequence[WarmStart]]:
    """What searches have inherited, by their ids, in the order in which they name their sources."""
    if not search_ids:
        return {}
    query = select(WarmStart).where(WarmStart.search_id.in_(search_ids)).order_by(WarmStart.number)
    found: dict[str, list[WarmStart]] = defaultdict(list)
    for row in session.scalars(query):
        found[row.search_id].append(row)
    return found


def to_reuse(session: Session, search: Search, digest: str) -> Inherited | None:
    """The first result of a structure that a search has inherited and not taken over yet; the caller holds its lock."""
    if not search.spec.warm_start:
        return None
    query = select(Trial.reused_from).where(Trial.search_id == search.id, Trial.digest == digest)
    used = set(session.scalars(query))
    inherited = _distinct(_read(session, search.id, Trial.digest == digest)).values()
    return next((each for each in inherited if each.trial_id not in used and each.serves(digest)), None)


class Inheritance:
    """The results that one search has inherited, read once; afterwards only those that have been excluded or included."""

    def __init__(self) -> None:
        self.results: Sequence[Inherited] = ()
        self._found: dict[_Place, Inherited] = {}
        self._seen: dict[str, int] = {}

    def refresh(self, session: Session, search_id: str) -> None:
        """Read what has changed in the sources."""
        query = select(Search.id, Search.last_event).join(WarmStart, WarmStart.source_id == Search.id)
        events = {source_id: last for source_id, last in session.execute(query.where(WarmStart.search_id == search_id))}
        changed = dict[_Place, Inherited]()
        for source_id in [source_id for source_id, last in events.items() if last > self._seen.get(source_id, -1)]:
            newer = Trial.changed > self._seen.get(source_id, -1)
            changed |= _read(session, search_id, WarmStart.source_id == source_id, newer)
        self._seen = events
        if changed:
            self._found |= changed
            self.results = list(_distinct(self._found).values())


def _source(session: Session, spec: SearchSpec, source_id: str) -> Search:
    source = session.get(Search, source_id)
    try:
        if source is None:
            raise FieldError("warm_start", expected="ids of earlier searches of this service", got=source_id)
        check_source(spec, source_id, source.spec)
    except FieldError as error:
        raise InvalidValue("", error) from error
    return source


def _read(session: Session, search_id: str, *conditions: ColumnElement[bool]) -> dict[_Place, Inherited]:
    """Results in what a search has inherited."""
    trained = func.coalesce(Trial.reused_from, Trial.id).label("trial_id")
    query = (
        select(WarmStart.number, Trial.number, trained, Trial.seed, *repositories.PAST)
        .join(Trial, Trial.search_id == WarmStart.source_id)
        .where(
            WarmStart.search_id == search_id,
            Trial.finish_order < WarmStart.num_finished,
            Trial.state.in_(_RESULTS),
            *conditions,
        )
    )
    rows = session.execute(query)
    _, _, *names = rows.keys()
    return {(source, number): Inherited(**dict(zip(names, result, strict=True))) for source, number, *result in rows}


def _distinct(found: Mapping[_Place, Inherited]) -> dict[_Place, Inherited]:
    """In the order of the sources and of their trials; each training once, though several searches may have its result,
    and none that one of them has excluded."""
    known = {result.trial_id for result in found.values() if result.excluded}
    distinct = dict[_Place, Inherited]()
    for place, result in sorted(found.items(), key=lambda item: item[0]):
        if result.trial_id not in known:
            known.add(result.trial_id)
            distinct[place] = result
    return distinct
