"""Searches: submit, look, steer, ask for the best."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.auth import Reader, Submitter
from api.bodies import SearchChanges
from api.deps import AppDatabase, AppSettings, ComparedTrial, Paging, Reading, SearchId, Writing
from api.errors import responses
from api.idempotency import Idempotent
from api.schemas import (
    BestResource,
    ComparisonResource,
    EstimateResource,
    HypervolumeResource,
    ListOf,
    RankedResource,
    SearchResource,
)
from search.spec import SearchSpec
from service import comparisons, hypervolumes, quotas, rankings, searches
from service.models import PauseMode

router = APIRouter(prefix="/v1", tags=["searches"])


@router.post("/searches", status_code=201, responses=responses(400, 409, 413, 415, 422, 429))
def submit_search(
    spec: SearchSpec,
    session: Writing,
    settings: AppSettings,
    caller: Submitter,
    idempotent: Idempotent,
) -> SearchResource:
    """Submit a search. It is queued; a runner takes it from there."""

    def submit() -> SearchResource:
        quotas.check_submit(session, caller, settings, spec)
        return SearchResource.of(searches.submit(session, spec, settings.corpora_dir, caller))

    return idempotent.run(session, caller.owner, submit)


@router.post("/searches:validate", responses=responses(400, 413, 415, 422))
def validate_search(spec: SearchSpec, session: Reading, settings: AppSettings, caller: Reader) -> EstimateResource:
    """Check a search and estimate its cost without submitting it."""
    return EstimateResource.model_validate(searches.estimate(session, spec, settings.corpora_dir))


@router.get("/searches", responses=responses(400, 422))
def list_searches(
    session: Reading, page: Paging, caller: Reader, owner: Annotated[str | None, Query(max_length=64)] = None
) -> ListOf[SearchResource]:
    """The searches, newest first, of everybody or of one owner."""
    found = searches.listing(session, page, owner=owner)
    items = [SearchResource.of(detail) for detail in found.items]
    return ListOf[SearchResource](items=items, next_page_token=found.next_token)


@router.get("/searches/{search_id}", responses=responses(404, 422))
def get_search(search_id: SearchId, session: Reading, caller: Reader) -> SearchResource:
    """One search with its progress."""
    return SearchResource.of(searches.detail(session, search_id))


@router.patch("/searches/{search_id}", responses=responses(400, 403, 404, 409, 413, 415, 422, 429))
def change_search(
    search_id: SearchId, changes: SearchChanges, session: Writing, settings: AppSettings, caller: Submitter
) -> SearchResource:
    """Give a search that has not ended another budget; it goes on at once where the new one pays for more."""
    quotas.check_extension(session, caller, settings, search_id, changes.budget)
    return SearchResource.of(searches.extend(session, search_id, changes.budget, caller))


@router.get("/searches/{search_id}/best", responses=responses(404, 422))
def get_best(
    search_id: SearchId, session: Reading, caller: Reader, limit: Annotated[int, Query(ge=1, le=500)] = 10
) -> BestResource:
    """The structures with the lowest mean held-out loss, and how sure that is."""
    return BestResource.of(searches.best(session, search_id, limit))


@router.get("/searches/{search_id}/comparison", responses=responses(404, 422))
def compare_structures(
    search_id: SearchId, session: Reading, caller: Reader, a: ComparedTrial, b: ComparedTrial
) -> ComparisonResource:
    """How probable it is that the structure of trial ``a`` is better than that of trial ``b``, and by how much."""
    return ComparisonResource.of(comparisons.compare(session, search_id, a, b))


@router.get("/searches/{search_id}/pareto", responses=responses(400, 404, 422))
def get_pareto(
    search_id: SearchId,
    database: AppDatabase,
    page: Paging,
    caller: Reader,
    metrics: Annotated[
        str,
        Query(
            max_length=200,
            description="Two to four of loss, omega, psi, nu, params, macs, latency, peak_memory, seconds, by commas; psi "
            "is maximised and the others minimised unless :max or :min follows.",
        ),
    ] = "loss,macs",
) -> ListOf[RankedResource]:
    """The structures that no other one of the search beats in all of these metrics, by the first of them."""
    front = rankings.pareto(database, search_id, metrics, page)
    items = [RankedResource.of(ranked) for ranked in front.items]
    return ListOf[RankedResource](items=items, next_page_token=front.next_token)


@router.get("/searches/{search_id}/hypervolume", responses=responses(404, 422))
def get_hypervolume(
    search_id: SearchId,
    session: Reading,
    caller: Reader,
    metrics: Annotated[
        str,
        Query(
            max_length=200, description="Two to four of loss, params, macs, latency, peak_memory, seconds, by commas."
        ),
    ] = "loss,macs",
    reference: Annotated[
        str | None,
        Query(
            max_length=200,
            description="A value for each metric, by commas; 1.1 times the worst by now if none is given.",
        ),
    ] = None,
) -> HypervolumeResource:
    """How the front of a search grew with its trials: a point for each that enlarged it, and for the last that ended."""
    return HypervolumeResource.model_validate(hypervolumes.over_time(session, search_id, metrics, reference))


@router.post("/searches/{search_id}:pause", responses=responses(403, 404, 409, 422))
def pause_search(
    search_id: SearchId, session: Writing, caller: Submitter, mode: PauseMode = PauseMode.DRAIN
) -> SearchResource:
    """Start no more trials; those that run, run to their end, or write a checkpoint and go on from it after a resume."""
    return SearchResource.of(searches.pause(session, search_id, mode, caller))


@router.post("/searches/{search_id}:resume", responses=responses(403, 404, 409, 422))
def resume_search(search_id: SearchId, session: Writing, caller: Submitter) -> SearchResource:
    """Go on after a pause."""
    return SearchResource.of(searches.resume(session, search_id, caller))


@router.post("/searches/{search_id}:cancel", responses=responses(403, 404, 409, 422))
def cancel_search(search_id: SearchId, session: Writing, caller: Submitter) -> SearchResource:
    """Stop the trials that run and end the search; what completed stays."""
    return SearchResource.of(searches.cancel(session, search_id, caller))
