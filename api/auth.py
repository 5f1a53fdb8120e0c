"""Who asks, and whether they may: ``Reader``, ``Submitter`` and ``Admin`` are the callers that endpoints ask for.

A key that comes is always checked, needed or not. Each request reads it anew, in a short transaction of its own, so that
one that is revoked is refused from the next request on.
"""

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from api.deps import AppDatabase, AppRateLimit, AppSettings
from service.database import Database
from service.errors import Unauthorized
from service.keys import LOCAL, Caller, Scope, authenticate
from service.settings import LOOPBACK, Settings

_bearer = HTTPBearer(
    scheme_name="ApiKey",
    bearerFormat="es_<id>_<secret>",
    description="An API key. A service that only its own machine can reach needs none.",
    auto_error=False,  # its own refusal would be no problem of ours
)


def _identified(
    request: Request,
    database: AppDatabase,
    settings: AppSettings,
    rate_limit: AppRateLimit,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Who asks, if they have not asked too often. A wrong key counts as its host's: the id in it may be somebody else's."""
    host = f"host {request.client.host if request.client else None}"
    try:
        caller = _caller_of(request, database, settings, bearer)
    except Unauthorized:
        rate_limit.take(host, settings.requests_per_minute)
        raise
    request.state.owner = caller.owner  # for the line that is logged
    name = host if caller.key_id is None else f"key {caller.key_id}"
    rate_limit.take(name, caller.limits.requests_per_minute or settings.requests_per_minute)
    return caller


def _caller_of(
    request: Request, database: Database, settings: Settings, bearer: HTTPAuthorizationCredentials | None
) -> Caller:
    headers = request.headers.getlist("Authorization")
    if bearer is None or len(headers) > 1:
        if headers:
            raise Unauthorized("expected one header such as Authorization: Bearer es_<id>_<secret>")
        if settings.needs_keys:
            raise Unauthorized(
                "this service needs an API key: send it as Authorization: Bearer es_<id>_<secret>; "
                "who runs the service creates one with: einsearch keys create --owner NAME"
            )
        if request.url.hostname not in LOOPBACK:
            # A page in a browser on this machine can ask for a name of its own that leads here (DNS rebinding).
            raise Unauthorized(
                f"without a key this service answers at {', '.join(LOOPBACK)} alone, and was asked for at "
                f"{request.url.hostname}; use one of these names, or send an API key"
            )
        return LOCAL
    with database.read() as session:
        return authenticate(session, bearer.credentials)


def _permitted(needed: SecurityScopes, caller: Annotated[Caller, Depends(_identified)]) -> Caller:
    for scope in needed.scopes:
        caller.require(Scope(scope))
    return caller


Reader = Annotated[Caller, Security(_permitted, scopes=[Scope.READ])]
"""A caller who may look; 401 without a key that is needed, 403 without the scope, 429 too often."""
Submitter = Annotated[Caller, Security(_permitted, scopes=[Scope.SUBMIT])]
"""A caller who may submit searches and steer those of its own; refused as a ``Reader`` is."""
Admin = Annotated[Caller, Security(_permitted, scopes=[Scope.ADMIN])]
"""A caller who may do everything; refused as a ``Reader`` is."""
