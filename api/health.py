"""Liveness and readiness, outside of the versioned API."""

from collections.abc import Iterable

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from api.deps import AppDatabase
from api.schemas import Health
from einlayers.errors import shorten
from service import leases
from service.database import Database
from service.figures import latest_runner
from service.migrate import is_current
from service.models import Runner

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> Health:
    """Whether this process answers."""
    return Health(status="ok", checks={})


@router.get("/readyz", responses={503: {"model": Health}})
def readyz(database: AppDatabase, response: Response) -> Health:
    """Whether requests can be served, and whether what they ask for is carried out; if not, what to do about it.

    `degraded`: requests are served, and searches wait. `unavailable`, with 503: nothing that needs the database works.
    """
    try:
        checks = _checks(database)
    except SQLAlchemyError:
        checks = _without_database("does not answer")
    if checks["database"] != "ok":
        response.status_code = 503
        return Health(status="unavailable", checks=checks)
    return Health(status="ok" if set(checks.values()) == {"ok"} else "degraded", checks=checks)


def _checks(database: Database) -> dict[str, str]:
    if not is_current(database):
        return _without_database("the schema is not current: run python -m service.migrate upgrade")
    with database.read() as session:
        alive = leases.alive(session)
        if not alive:
            return {"database": "ok", "runner": _no_runner(session), "ray": "unknown: only a runner can tell"}
    return {"database": "ok", "runner": "ok", "ray": _ray(alive)}


def _without_database(state: str) -> dict[str, str]:
    unknown = "unknown: only the database can tell"
    return {"database": state, "runner": unknown, "ray": unknown}


def _no_runner(session: Session) -> str:
    """Since when there is none: the clock of the last sign of life is the database's."""
    latest = latest_runner(session)
    since = (
        ""
        if latest is None
        else f" since {latest.seen_at.isoformat(timespec='seconds')}, the last sign of life of runner {latest.id}"
    )
    return f"none is alive{since}: searches wait; start python -m service.runner, or read its log if it does not stay"


def _ray(alive: Iterable[Runner]) -> str:
    """What the runners say of their Ray; all that do not say "ok"."""
    return "; ".join(_ray_of(runner) for runner in alive if runner.stats.ray != "ok") or "ok"


def _ray_of(runner: Runner) -> str:
    since = runner.stats.ray_since
    when = "" if since is None else f" since {since.isoformat(timespec='seconds')}"
    return f"runner {runner.id} says{when}: {shorten(runner.stats.ray, 300)}; trials wait; look after its Ray cluster"
