"""Studies of all kinds. Each kind has its own place; they are submitted, listed and read alike."""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar

from fastapi import APIRouter

from api.auth import Reader, Submitter
from api.deps import AppSettings, Paging, Reading, SearchId, Writing
from api.errors import responses
from api.idempotency import Idempotent
from api.schemas import ListOf, Schema
from search.states import StudyState
from search.studies.baseline import Baseline, DenseFrontier
from search.studies.calibration import Calibrated, Calibration
from search.studies.fidelity import Fidelity, FidelityStudy
from search.studies.scaling import Scaling, ScalingStudy
from search.studies.transfer import Transfer, TransferCheck
from service import quotas, studies
from service.models import Study

Spec = TypeVar("Spec")
Found = TypeVar("Found")


class StudyResource(Schema, Generic[Spec, Found]):
    """A study as it was asked for, the searches that carry it out by their parts in it, and what it has found, null until
    they have all ended; ``reason`` says why a study has FAILED. Times are UTC."""

    id: str
    kind: str
    name: str
    owner: str
    state: StudyState
    reason: str | None
    searches: Mapping[str, str]
    spec: Spec
    finding: Found | None
    created_at: datetime
    finished_at: datetime | None


def _resource(schema: type[StudyResource[Any, Any]], study: Study) -> StudyResource[Any, Any]:
    own = {"searches"}
    columns = {name: getattr(study, name) for name in schema.model_fields.keys() - own}
    return schema(**columns, searches={part.role: part.search_id for part in study.parts})


def _routes(kind: str, plural: str, spec_type: Any, found_type: Any) -> APIRouter:
    """The endpoints of one kind of study."""
    routes = APIRouter(prefix="/v1", tags=["studies"])
    schema: Any = StudyResource[spec_type, found_type]
    of = partial(_resource, schema)
    what = (spec_type.__doc__ or "").split("\n\n")[0]

    @routes.post(
        f"/{plural}",
        name=f"submit_{kind}",
        status_code=201,
        responses=responses(400, 409, 413, 415, 422, 429),
        response_model=schema,
        description=f"{what} Its searches are queued; its finding is there once they have ended.",
    )
    def submit_study(
        spec: spec_type, session: Writing, settings: AppSettings, caller: Submitter, idempotent: Idempotent
    ) -> Any:
        def check(search: Any) -> None:
            quotas.check_submit(session, caller, settings, search)

        def submit() -> StudyResource[Any, Any]:
            return of(studies.submit(session, spec, settings.corpora_dir, caller, check))

        return idempotent.run(session, caller.owner, submit)

    @routes.get(
        f"/{plural}",
        name=f"list_{plural.replace('-', '_')}",
        responses=responses(400, 422),
        response_model=ListOf[schema],
        description="All of them, newest first.",
    )
    def list_studies(session: Reading, page: Paging, caller: Reader) -> Any:
        found = studies.listing(session, kind, page)
        return ListOf[schema](items=[of(study) for study in found.items], next_page_token=found.next_token)

    @routes.get(
        f"/{plural}/{{study_id}}",
        name=f"get_{kind}",
        responses=responses(404, 422),
        response_model=schema,
        description="One with its finding.",
    )
    def get_study(study_id: SearchId, session: Reading, caller: Reader) -> Any:
        return of(studies.by_id(session, kind, study_id))

    return routes


router = APIRouter()
for _routes_of_kind in (
    _routes("baseline", "baselines", Baseline, DenseFrontier),
    _routes("calibration", "calibrations", Calibration, Calibrated),
    _routes("fidelity_study", "fidelity-studies", FidelityStudy, Fidelity),
    _routes("scaling_study", "scaling-studies", ScalingStudy, Scaling),
    _routes("transfer_check", "transfer-checks", TransferCheck, Transfer),
):
    router.include_router(_routes_of_kind)
