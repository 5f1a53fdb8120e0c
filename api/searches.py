"""Searches: submit, look, steer, ask for the best."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.deps import AppSettings, Paging, Reading, SearchId, Writing
from api.errors import responses
from api.schemas import BestResource, EstimateResource, ListOf, RankedResource, SearchResource
from search.spec import SearchSpec
from service import searches

router = APIRouter(prefix="/v1", tags=["searches"])


@router.post("/searches", status_code=201, responses=responses(400, 413, 415, 422))
def submit_search(spec: SearchSpec, session: Writing, settings: AppSettings, response: Response) -> SearchResource:
    """Submit a search. It is queued; a runner takes it from there."""
    detail = searches.submit(session, spec, settings.corpora_dir)
    response.headers["Location"] = f"/v1/searches/{detail.search.id}"
    return SearchResource.of(detail)


@router.post("/searches:validate", responses=responses(400, 413, 415, 422))
def validate_search(spec: SearchSpec, settings: AppSettings) -> EstimateResource:
    """Check a search and estimate its cost without submitting it."""
    return EstimateResource.model_validate(searches.validate(spec, settings.corpora_dir))


@router.get("/searches", responses=responses(400, 422))
def list_searches(session: Reading, page: Paging) -> ListOf[SearchResource]:
    """The searches, newest first."""
    found = searches.listing(session, page)
    items = [SearchResource.of(detail) for detail in found.items]
    return ListOf[SearchResource](items=items, next_page_token=found.next_token)


@router.get("/searches/{search_id}", responses=responses(404, 422))
def get_search(search_id: SearchId, session: Reading) -> SearchResource:
    """One search with its progress."""
    return SearchResource.of(searches.detail(session, search_id))


@router.get("/searches/{search_id}/best", responses=responses(404, 422))
def get_best(search_id: SearchId, session: Reading, limit: Annotated[int, Query(ge=1, le=500)] = 10) -> BestResource:
    """The structures with the lowest mean held-out loss."""
    ranked = searches.best(session, search_id, limit)
    return BestResource(items=[RankedResource.of(rank, structure) for rank, structure in enumerate(ranked, start=1)])


@router.post("/searches/{search_id}:pause", responses=responses(404, 409, 422))
def pause_search(search_id: SearchId, session: Writing) -> SearchResource:
    """Start no more trials; those that run, run to their end."""
    return SearchResource.of(searches.pause(session, search_id))


@router.post("/searches/{search_id}:resume", responses=responses(404, 409, 422))
def resume_search(search_id: SearchId, session: Writing) -> SearchResource:
    """Go on after a pause."""
    return SearchResource.of(searches.resume(session, search_id))


@router.post("/searches/{search_id}:cancel", responses=responses(404, 409, 422))
def cancel_search(search_id: SearchId, session: Writing) -> SearchResource:
    """Stop the trials that run and end the search; what completed stays."""
    return SearchResource.of(searches.cancel(session, search_id))
