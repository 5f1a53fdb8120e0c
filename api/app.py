"""The FastAPI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline

from api import events, export, health, metrics, searches, structures, studies, trials, webhooks
from api.deps import MAX_SESSIONS
from api.document import complete
from api.errors import Problem, add_handlers, responses
from api.idempotency import Flights
from api.limits import BodyLimit
from api.metrics import MeteredRequests, Metrics
from api.requests import RequestIds
from service.database import Database
from service.settings import Settings

DESCRIPTION = """
Searches the continuous space of einsum structures for better linear layers.

Submit a search, follow it, ask for the best structures. One MAC is one multiply-add; training FLOPs are 6 MACs per
example (of text: a token); losses are held out, in nats, or for a regression in variances. Refusals are
`application/problem+json`.
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
        # What is sent may say a preset's name where what is answered has its settings; one schema tells of both.
        separate_input_output_schemas=False,
    )
    app.state.database = database
    app.state.settings = settings
    app.state.flights = Flights()
    app.state.turns = asyncio.Semaphore(MAX_SESSIONS)
    app.state.metrics = Metrics(database)
    for module in (searches, trials, structures, studies, events, export, webhooks, health, metrics):
        app.include_router(module.router)
    app.add_api_route("/", _root, include_in_schema=False)
    # The last one is the outermost: what the others refuse has an id, and is counted.
    app.add_middleware(BodyLimit)
    app.add_middleware(MeteredRequests, metrics=app.state.metrics)
    app.add_middleware(RequestIds)
    add_handlers(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
    return app


def _root() -> RedirectResponse:
    return RedirectResponse("/docs")


def _operation_id(route: APIRoute) -> str:
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the problems that we really answer in place of its own validation errors, and with links."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schemas = document["components"]["schemas"]
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= problem.pop("$defs")
        schemas["Problem"] = problem
        for path in document["paths"].values():
            for operation in path.values():
                _add_refusals(operation)
        complete(document)
    return app.openapi_schema or document


def _add_refusals(operation: dict[str, Any]) -> None:
    """What is the same for all endpoints, so that none says so itself: bad parameters, no key, not this often."""
    said = operation["responses"]
    statuses = [422] if "HTTPValidationError" in str(said.get("422")) else []
    if "security" in operation:
        statuses += [401, 403, 429]
    said |= {str(status): refusal for status, refusal in responses(*statuses).items()}
