"""Structures: the best over all searches, and what any one of them is on paper; presets of proxies."""

from fastapi import APIRouter

from api.auth import Reader
from api.bodies import DescribeRequest
from api.deps import Paging, Reading
from api.errors import responses
from api.filters import StructureFilters
from api.schemas import ListOf, PresetResource, PresetsResource, StructureResource
from search.proxies.presets import PRESETS
from service import listings
from service.describe import Description, describe
from service.listings import Metric

router = APIRouter(prefix="/v1", tags=["structures"])


@router.get("/structures", responses=responses(400, 422))
def list_structures(
    session: Reading,
    page: Paging,
    caller: Reader,
    filters: StructureFilters,
    order_by: Metric = "loss",
    descending: bool = False,
) -> ListOf[StructureResource]:
    """Completed trials of all searches. Losses compare only where the proxies are equal."""
    found = listings.structures(session, page, filters, order_by, descending)
    items = [StructureResource.of(trial) for trial in found.items]
    return ListOf[StructureResource](items=items, next_page_token=found.next_token)


@router.get("/presets", tags=["searches"])
def list_presets(caller: Reader) -> PresetsResource:
    """Settings of proxies with a name, which a body may say instead: `"proxy": "screening"`."""
    return PresetsResource(items=[PresetResource.model_validate(preset) for preset in PRESETS.values()])


@router.post("/structures:describe", responses=responses(400, 413, 415, 422))
def describe_structure(request: DescribeRequest, caller: Reader) -> Description:
    """What follows from a theta and two widths: dims, cost, rank, taxonomy, family, muP rules, the einsum."""
    return describe(request.theta, request.d_in, request.d_out, request.policy)
