"""Trials of a search, and their learning curves."""

from fastapi import APIRouter

from api.deps import Paging, Reading, SearchId, TrialId
from api.errors import responses
from api.schemas import ListOf, MeasurementResource, TrialResource, page_of
from search.states import TrialState
from service import repositories

router = APIRouter(prefix="/v1", tags=["trials"])


@router.get("/searches/{search_id}/trials", responses=responses(400, 404, 422))
def list_trials(
    search_id: SearchId, session: Reading, page: Paging, state: TrialState | None = None
) -> ListOf[TrialResource]:
    """The trials of a search in order of their number, all or those in a state."""
    repositories.search_by_id(session, search_id)
    return page_of(repositories.trials(session, search_id, page, state), TrialResource)


@router.get("/trials/{trial_id}", responses=responses(404, 422))
def get_trial(trial_id: TrialId, session: Reading) -> TrialResource:
    """One trial with its attempts."""
    return TrialResource.model_validate(repositories.trial_by_id(session, trial_id))


@router.get("/trials/{trial_id}/measurements", responses=responses(404, 422))
def list_measurements(trial_id: TrialId, session: Reading) -> ListOf[MeasurementResource]:
    """The learning curve of the trial's latest attempt: at most a dozen points, so one page always holds it."""
    repositories.trial_by_id(session, trial_id)
    points = repositories.measurements(session, trial_id)
    items = [MeasurementResource.model_validate(point) for point in points]
    return ListOf[MeasurementResource](items=items, next_page_token=None)
