"""What a use case refuses, with the HTTP status that says so; rendered in ``api/errors.py`` and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType
from typing import ClassVar

from einlayers.errors import FieldError


class ServiceError(Exception):
    """A request that is understood and refused; ``headers`` go with the answer."""

    status_code: ClassVar[int]
    code: ClassVar[str]
    headers: Mapping[str, str] = MappingProxyType({})


class Unauthorized(ServiceError):
    """Nobody knows who asks: there is no key where one is needed, or it is none of ours, or not any more."""

    status_code = 401
    code = "unauthorized"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class Forbidden(ServiceError):
    """Who asks is known and may not do this."""

    status_code = 403
    code = "forbidden"


class TooMany(ServiceError):
    """Who asks has had what is allowed for now, and may ask again in ``retry_after`` seconds."""

    status_code = 429
    code = "too_many_requests"

    def __init__(self, detail: str, *, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = max(1, ceil(retry_after))
        self.headers = {"Retry-After": str(self.retry_after)}


class NotFound(ServiceError):
    """There is no resource of that kind with that id."""

    status_code = 404
    code = "not_found"

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(f"there is no {kind} {identifier[:80]!r}")


class WrongState(ServiceError):
    """The resource is in a state that does not allow this."""

    status_code = 409
    code = "wrong_state"


class BudgetExhausted(ServiceError):
    """The budget of the search pays for no further trial."""

    status_code = 409
    code = "budget_exhausted"

    def __init__(self, search_id: str) -> None:
        super().__init__(
            f"search {search_id} has all the trials that its budget pays for; extend it with PATCH /v1/searches/{search_id}"
        )


class BadPageToken(ServiceError):
    """The page token is none that this list has handed out."""

    status_code = 400
    code = "bad_page_token"

    def __init__(self) -> None:
        super().__init__("expected a page_token from an earlier answer of this list with the same order, or none")


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """Where a value stands in the request body, as a JSON pointer, and what is wrong with it."""

    pointer: str
    detail: str

    @classmethod
    def of(cls, pointer: str, error: FieldError) -> "FieldProblem":
        """The problem of a field of the object at ``pointer``; a rule over several fields stands at the object itself."""
        if error.field.isidentifier():
            return cls(f"{pointer}/{error.field}", f"expected {error.expected}, got {error.shown}")
        return cls(pointer, str(error))


class InvalidValue(ServiceError):
    """A value is well-formed and cannot be served."""

    status_code = 422
    code = "invalid_value"

    def __init__(self, pointer: str, error: FieldError) -> None:
        super().__init__("the request holds a value that cannot be served")
        self.problems = (FieldProblem.of(pointer, error),)
