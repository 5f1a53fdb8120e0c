"""Trials of a search, and their learning curves."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.auth import Reader, Submitter
from api.bodies import ExclusionRequest, TrialRequest
from api.deps import Paging, Reading, SearchId, TrialId, Writing
from api.errors import responses
from api.filters import TrialFilters
from api.idempotency import Idempotent
from api.schemas import ListOf, MeasurementResource, TrialResource, page_of
from service import listings, repositories, trials
from service.listings import Metric

router = APIRouter(prefix="/v1", tags=["trials"])


@router.post("/searches/{search_id}/trials", status_code=201, responses=responses(400, 403, 404, 409, 413, 415, 422))
def add_trial(
    search_id: SearchId, request: TrialRequest, session: Writing, caller: Submitter, idempotent: Idempotent
) -> TrialResource:
    """Add a structure of your own to a search; it takes the next place in its budget."""

    def enqueue() -> TrialResource:
        trial = trials.enqueue(session, search_id, request.theta, caller, variant=request.variant)
        return TrialResource.model_validate(trial)

    return idempotent.run(session, caller.owner, enqueue)


@router.get("/searches/{search_id}/trials", responses=responses(400, 404, 422))
def list_trials(
    search_id: SearchId,
    session: Reading,
    page: Paging,
    caller: Reader,
    filters: TrialFilters,
    order_by: Annotated[Metric | None, Query(description="Lists only trials that have this metric.")] = None,
    descending: bool = False,
) -> ListOf[TrialResource]:
    """The trials of a search that pass the filters, in order of their number or of a metric."""
    repositories.search_by_id(session, search_id)
    found = listings.trials(session, search_id, page, filters, order_by=order_by, descending=descending)
    return page_of(found, TrialResource)


@router.get("/trials/{trial_id}", responses=responses(404, 422))
def get_trial(trial_id: TrialId, session: Reading, caller: Reader) -> TrialResource:
    """One trial with its attempts."""
    return TrialResource.model_validate(repositories.trial_by_id(session, trial_id))


@router.get("/trials/{trial_id}/measurements", responses=responses(404, 422))
def list_measurements(trial_id: TrialId, session: Reading, caller: Reader) -> ListOf[MeasurementResource]:
    """The learning curve of the trial's latest attempt: at most a dozen points, so one page always holds it."""
    repositories.trial_by_id(session, trial_id)
    points = repositories.measurements(session, trial_id)
    items = [MeasurementResource.model_validate(point) for point in points]
    return ListOf[MeasurementResource](items=items, next_page_token=None)


@router.post("/trials/{trial_id}:exclude", responses=responses(400, 403, 404, 409, 413, 415, 422))
def exclude_trial(trial_id: TrialId, request: ExclusionRequest, session: Writing, caller: Submitter) -> TrialResource:
    """Leave a trial out of every answer, and out of what the sampler learns from; it is kept."""
    return TrialResource.model_validate(trials.exclude(session, trial_id, request.reason, caller))


@router.post("/trials/{trial_id}:include", responses=responses(403, 404, 409, 422))
def include_trial(trial_id: TrialId, session: Writing, caller: Submitter) -> TrialResource:
    """Undo an exclusion."""
    return TrialResource.model_validate(trials.include(session, trial_id, caller))
