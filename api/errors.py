"""Every refusal as RFC 9457 ``application/problem+json``: a stable type and code, the id of the request, and pointers to
the fields at fault."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.document import methods_of
from api.requests import REQUEST_ID, request_id
from einlayers.errors import FieldError, shorten
from service.errors import FieldProblem, InvalidValue, ServiceError

MEDIA_TYPE = "application/problem+json"

logger = logging.getLogger(__name__)


class ProblemField(BaseModel):
    """A value at fault: where it stands (a JSON pointer into the body, or the name of a parameter), what was expected."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: Sequence[ProblemField] = ()


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these refusals for an endpoint."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def add_handlers(app: FastAPI) -> None:
    """Render every error of ``app`` as a problem."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    for outage in (OperationalError, InterfaceError, PoolTimeout, ProgrammingError):
        app.add_exception_handler(outage, _database_error)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _unexpected_error)


def _problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    problems: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    identifier = request_id(request.scope)
    problem = Problem(
        type=f"urn:einsearch:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        request_id=identifier,
        errors=[ProblemField(pointer=problem.pointer, detail=problem.detail) for problem in problems],
    )
    # The answer to a fault of ours is sent from outside of the middleware that would add the id.
    sent = {**(headers or {}), REQUEST_ID: identifier}
    return JSONResponse(problem.model_dump(), status_code=status, media_type=MEDIA_TYPE, headers=sent)


async def _service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    problems = error.problems if isinstance(error, InvalidValue) else ()
    return _problem(request, error.status_code, error.code, str(error), problems, error.headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if isinstance(error.body, bytes):
        return _problem(
            request, 415, "unsupported_media_type", "expected a JSON body with Content-Type: application/json"
        )
    if any(problem["type"] == "json_invalid" for problem in found):
        reason = found[0].get("ctx", {}).get("error", "it is not JSON")
        return _problem(request, 400, "malformed_body", f"the body is not valid JSON: {reason}")
    if any(problem["loc"][0] == "path" for problem in found):
        return _problem(
            request, 404, "not_found", f"there is nothing at {request.url.path[:200]!r}: ids look otherwise"
        )
    return _problem(
        request, 422, "invalid_value", _summary(found), [_field_problem(problem, error.body) for problem in found]
    )


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's, for a body that json refuses with more than a syntax error
        return _problem(
            request, 400, "malformed_body", "the body is not JSON that can be read: not UTF-8, or nested too deep"
        )
    code = _CODES.get(error.status_code) or HTTPStatus(error.status_code).name.lower()
    headers = dict(error.headers or {})
    if error.status_code == 405 and (methods := methods_of(request.app.openapi(), request.url.path)):
        headers["Allow"] = ", ".join(methods)  # of all routes of the path; Starlette knows those of the first one
    return _problem(request, error.status_code, code, str(error.detail), headers=headers)


# Python renamed this status in 3.13; our code for it stays.
_CODES = {413: "content_too_large"}


async def _database_error(request: Request, error: Exception) -> JSONResponse:
    """It is away for now, or not of this version; any other statement that it refuses is a fault of ours."""
    if _lacks_something(error):
        logger.error("the schema is not current: run python -m service.migrate upgrade", exc_info=error)
        return _unavailable(request, "the database is not ready for this version of the service; GET /readyz says more")
    if isinstance(error, ProgrammingError):
        raise error
    logger.error("the database does not answer", exc_info=error)
    return _unavailable(request, "the database does not answer; try again in a few seconds")


def _lacks_something(error: Exception) -> bool:
    """Whether a table, a column or a schema is not there, in the words of Postgres or of SQLite."""
    cause = getattr(error, "orig", None)
    return getattr(cause, "sqlstate", None) in ("42P01", "42703", "3F000") or str(cause).startswith("no such ")


def _unavailable(request: Request, detail: str) -> JSONResponse:
    return _problem(request, 503, "database_unavailable", detail, headers={"Retry-After": "5"})


async def _disconnected(request: Request, error: Exception) -> JSONResponse:
    """Nobody reads it; but there has to be an answer, and it is no fault of ours."""
    return _problem(request, 400, "client_disconnected", "the connection was closed before the body was complete")


async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    return _problem(request, 500, "internal_error", "a fault of the service; its log has the details")


def _field_problem(problem: Mapping[str, Any], body: object) -> FieldProblem:
    """Our own errors say what was expected and what came; pydantic's say the first, and we add the second."""
    source, *location = problem["loc"]
    path = _path_in(body, location) if source == "body" else [str(part) for part in location]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, FieldError):
        return FieldProblem.of(_pointer(path), cause)
    if problem["type"] == "missing" and source == "body":
        return FieldProblem(_pointer([*path, *map(str, location[-1:])]), "this field is required")
    where = {"body": _pointer(path), "query": f"?{'.'.join(path)}"}.get(source, ".".join(path))
    if problem["type"] == "missing":
        return FieldProblem(where, "this parameter is required")
    return FieldProblem(where, f"{shorten(problem['msg'], 300)}, got {shorten(ascii(problem.get('input')))}")


def _path_in(body: object, location: Sequence[str | int]) -> list[str]:
    """pydantic's location without the names of union members, which do not occur in the document."""
    path, node = [], body
    for part in location:
        if (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int)):
            node = node[part]  # type: ignore[index]  # checked in the line above
            path.append(str(part))
    return path


def _pointer(path: Sequence[str]) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def _summary(found: Sequence[Mapping[str, Any]]) -> str:
    values = "one value" if len(found) == 1 else f"{len(found)} values"
    return f"the request holds {values} that cannot be accepted; see errors"
