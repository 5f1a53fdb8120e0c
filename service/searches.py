"""Use cases of searches: submit, estimate, look, pause, resume, cancel, end."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from einlayers.errors import FieldError
from einlayers.theta import NAMED
from search.corpora import locate
from search.proxies import FileCorpus
from search.spec import SearchSpec
from search.states import IllegalTransition, SearchState, TrialState
from search.structure import Structure, structure_of
from service import repositories
from service.errors import InvalidValue, WrongState
from service.models import Search, StopReason, now
from service.repositories import Page, PageRequest, Progress, RankedStructure


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchDetail:
    """A search and how far it is."""

    search: Search
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a search will cost, and the models that its known designs give: the dense baseline first, then its seeds."""

    train_flops: float
    max_trials: int
    baseline: Structure
    seeds: Sequence[Structure]


def validate(spec: SearchSpec, corpora_dir: Path | None) -> Estimate:
    """Check what only this service can know of a spec, and estimate its cost.

    Raises:
        InvalidValue: the corpus is not a file that the operator allows.
    """
    if isinstance(spec.proxy.corpus, FileCorpus):
        try:
            size = locate(spec.proxy.corpus, corpora_dir).stat().st_size
            # A twentieth is held out, and each part must hold at least one sequence and its successor.
            if size < (needed := 20 * (spec.proxy.context + 1)):
                raise FieldError(
                    "path", expected=f"a file of at least {needed} bytes for this context", got=f"{size} bytes"
                )
        except FieldError as error:
            raise InvalidValue("/proxy/corpus", error) from error
    return Estimate(
        train_flops=spec.proxy.train_flops * spec.budget.max_trials,
        max_trials=spec.budget.max_trials,
        baseline=structure_of(NAMED["dense"], spec.proxy),
        seeds=[structure_of(NAMED[name], spec.proxy) for name in spec.space.seeds],
    )


def submit(session: Session, spec: SearchSpec, corpora_dir: Path | None) -> SearchDetail:
    """Queue a search.

    Raises:
        InvalidValue: see ``validate``.
    """
    validate(spec, corpora_dir)
    search = Search(
        id=secrets.token_hex(6), name=spec.name, spec=spec, proxy_kind=spec.proxy.kind, state=SearchState.QUEUED
    )
    search.created_at = now()
    session.add(search)
    session.flush()
    return detail(session, search.id)


def detail(session: Session, search_id: str) -> SearchDetail:
    """One search.

    Raises:
        NotFound: there is none.
    """
    search = repositories.search_by_id(session, search_id)
    return SearchDetail(search=search, progress=repositories.progress_of(session, [search])[search.id])


def listing(session: Session, page: PageRequest) -> Page[SearchDetail]:
    """The searches, newest first.

    Raises:
        BadPageToken: the token is not one of this list.
    """
    found = repositories.searches(session, page)
    progress = repositories.progress_of(session, found.items)
    items = [SearchDetail(search=search, progress=progress[search.id]) for search in found.items]
    return Page(items=items, next_token=found.next_token)


def best(session: Session, search_id: str, limit: int) -> list[RankedStructure]:
    """The best structures of a search.

    Raises:
        NotFound: there is no such search.
    """
    repositories.search_by_id(session, search_id)
    return repositories.best(session, search_id, limit)


def pause(session: Session, search_id: str) -> SearchDetail:
    """Start no more trials; those that run, run to their end.

    Raises:
        NotFound, WrongState: there is no such search, or it is not one that can pause.
    """
    return _move(session, search_id, SearchState.PAUSED)


def resume(session: Session, search_id: str) -> SearchDetail:
    """Go on after a pause.

    Raises:
        NotFound, WrongState: there is no such search, or it is not paused.
    """
    search = repositories.search_by_id(session, search_id, lock=True)
    if search.state is not SearchState.PAUSED:
        raise WrongState(f"search {search.id} is {search.state}; only a PAUSED search can be resumed")
    return _move(session, search_id, SearchState.RUNNING)


def cancel(session: Session, search_id: str) -> SearchDetail:
    """Stop the trials that run and end the search; what completed stays.

    Raises:
        NotFound, WrongState: there is no such search, or it is ending or has ended.
    """
    found = _move(session, search_id, SearchState.STOPPING)
    found.search.reason = StopReason.USER
    return found


def conclude(session: Session, search: Search) -> None:
    """End a search that has nothing left to run, for the reason that holds."""
    if search.state is SearchState.RUNNING:
        search.to(SearchState.STOPPING)
        search.reason = search.reason or StopReason.BUDGET_TRIALS
    if search.reason is StopReason.USER:
        search.to(SearchState.CANCELLED)
    elif _all_failed(session, search):
        search.reason = StopReason.ALL_TRIALS_FAILED
        search.to(SearchState.FAILED)
    else:
        search.to(SearchState.COMPLETED)
    search.waiting_for = None


def _all_failed(session: Session, search: Search) -> bool:
    num_failed = repositories.num_trials(session, search.id, TrialState.FAILED)
    return 0 < num_failed == repositories.num_trials(session, search.id)


def _move(session: Session, search_id: str, state: SearchState) -> SearchDetail:
    search = repositories.search_by_id(session, search_id, lock=True)
    try:
        search.to(state)
    except IllegalTransition as error:
        raise WrongState(f"search {search.id}: {error}") from error
    session.flush()
    return detail(session, search.id)
