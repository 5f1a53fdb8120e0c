"""What every refusal looks like."""

from http import HTTPStatus

from httpx2 import Response

from api.errors import Problem


def problem_of(response: Response, status: int, code: str | None = None) -> Problem:
    """The problem that a response is, which must have this status and, where one is given, this code."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content, strict=True, extra="forbid")
    assert problem.status == status
    assert problem.title == HTTPStatus(status).phrase
    assert problem.type == f"urn:einsearch:problem:{problem.code}"
    assert code is None or problem.code == code
    assert problem.detail
    return problem
