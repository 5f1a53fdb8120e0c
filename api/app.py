"""The FastAPI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline

from api import health, searches, structures, trials
from api.errors import Problem, add_handlers
from api.limits import BodyLimit
from service.database import Database
from service.settings import Settings

DESCRIPTION = """
Searches the continuous space of einsum structures for better linear layers.

Submit a search, follow it, ask for the best structures. One MAC is one multiply-add; training FLOPs are 6 MACs per token;
losses are nats per token on held-out text. Refusals are `application/problem+json`.
"""


def create_app(settings: Settings) -> FastAPI:
    """The application that serves these settings."""
    database = Database(settings.database)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        database.close()

    # FastAPI's own documentation page loads its script from a public server; this one brings it along.
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        title="einsearch",
        version=version("einsearch"),
        description=DESCRIPTION,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
    )
    app.state.database = database
    app.state.settings = settings
    for module in (searches, trials, structures, health):
        app.include_router(module.router)
    app.add_api_route("/", _root, include_in_schema=False)
    app.add_middleware(BodyLimit)
    add_handlers(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
    return app


def _root() -> RedirectResponse:
    return RedirectResponse("/docs")


def _operation_id(route: APIRoute) -> str:
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the problems that we really answer in place of its own validation errors."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schemas = document["components"]["schemas"]
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= problem.pop("$defs")
        schemas["Problem"] = problem
    return app.openapi_schema or document
