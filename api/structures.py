"""Structures: the best over all searches, and what any one of them is on paper."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Paging, Reading
from api.errors import responses
from api.schemas import DescribeRequest, ListOf, StructureResource
from einlayers.taxonomy import Family
from service import repositories
from service.describe import Description, describe
from service.repositories import METRICS, Metric

router = APIRouter(prefix="/v1", tags=["structures"])

Bound = Annotated[float | None, Query(allow_inf_nan=False)]


@router.get("/structures", responses=responses(400, 422))
def list_structures(
    session: Reading,
    page: Paging,
    order_by: Metric = "loss",
    descending: bool = False,
    family: Family | None = None,
    proxy: Annotated[str | None, Query(max_length=32, pattern="^[a-z_]+$")] = None,
    omega_min: Bound = None,
    omega_max: Bound = None,
    psi_min: Bound = None,
    psi_max: Bound = None,
    nu_min: Bound = None,
    nu_max: Bound = None,
    params_min: Bound = None,
    params_max: Bound = None,
    macs_min: Bound = None,
    macs_max: Bound = None,
    loss_min: Bound = None,
    loss_max: Bound = None,
) -> ListOf[StructureResource]:
    """Completed trials of all searches. Losses compare only where the proxies are equal."""
    given = dict(locals())
    page_of_trials = repositories.structures(
        session,
        page,
        order_by=order_by,
        descending=descending,
        family=family,
        proxy_kind=proxy,
        at_least={name: given[f"{name}_min"] for name in METRICS if given[f"{name}_min"] is not None},
        at_most={name: given[f"{name}_max"] for name in METRICS if given[f"{name}_max"] is not None},
    )
    items = [StructureResource.of(trial) for trial in page_of_trials.items]
    return ListOf[StructureResource](items=items, next_page_token=page_of_trials.next_token)


@router.post("/structures:describe", responses=responses(400, 413, 415, 422))
def describe_structure(request: DescribeRequest) -> Description:
    """What follows from a theta and two widths: dims, cost, rank, taxonomy, family, muP rules, the einsum."""
    return describe(request.theta, request.d_in, request.d_out, request.policy)
