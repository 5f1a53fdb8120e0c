"""What a use case refuses, with the HTTP status that says so; rendered in ``api/errors.py`` and nowhere else."""

from dataclasses import dataclass
from typing import ClassVar

from einlayers.errors import FieldError


class ServiceError(Exception):
    """A request that is understood and refused."""

    status_code: ClassVar[int]
    code: ClassVar[str]


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
