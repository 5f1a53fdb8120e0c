"""Liveness and readiness, outside of the versioned API."""

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from api.deps import AppDatabase
from api.schemas import Health
from service.migrate import is_current

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> Health:
    """Whether this process answers."""
    return Health(status="ok", checks={})


@router.get("/readyz", responses={503: {"model": Health}})
def readyz(database: AppDatabase, response: Response) -> Health:
    """Whether requests can be served: the database answers and has the schema of this code."""
    try:
        state = "ok" if is_current(database) else "the schema is not current: run python -m service.migrate upgrade"
    except SQLAlchemyError:
        state = "does not answer"
    if state != "ok":
        response.status_code = 503
    return Health(status="ok" if state == "ok" else "unavailable", checks={"database": state})
