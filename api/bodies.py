"""What the API accepts where that is no value type of its own (``SearchSpec``, ``StudySpec``): small bodies of requests."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, StringConstraints

from einlayers.dims import Policy
from einlayers.errors import FieldError
from einlayers.theta import Theta
from search.checks import Whole
from search.spec import Budget
from search.variant import Variant


def _only_numbers(value: object) -> object:
    """The mathematics knows nothing of JSON, so it is said here that "0.5" and true are no exponents."""
    for name, exponent in value.items() if isinstance(value, dict) else ():
        if isinstance(exponent, (bool, str)):
            raise FieldError(str(name), expected="a number", got=exponent)
    return value


SentTheta = Annotated[Theta, BeforeValidator(_only_numbers)]
"""A theta in a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeRequest:
    """A structure and the layer that it is to be."""

    theta: SentTheta
    d_in: Whole
    d_out: Whole
    policy: Policy = "exact"

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchChanges:
    """What can be changed of a search that has not ended: its budget, as a whole."""

    budget: Budget

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRequest:
    """A structure of the user's own, to be trained in a search, and the variant of the proxy's model, if not its own."""

    theta: SentTheta
    variant: Variant | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExclusionRequest:
    """Why a trial is to be left out."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]

    __pydantic_config__: ClassVar = {"extra": "forbid"}
