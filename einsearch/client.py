"""The Python client: the REST API as methods, its refusals as one exception.

with Client("http://127.0.0.1:8000") as client:
    search = client.submit({"name": "first", "budget": {"max_trials": 8}})
"""

import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict, cast
from urllib.parse import quote

import httpx2

from einlayers.theta import AXES, Theta

DEFAULT_URL = "http://127.0.0.1:8000"


class Progress(TypedDict):
    """How far a search is."""

    max_trials: int
    finished: int
    counts: dict[str, int]
    best_loss: float | None


class Search(TypedDict):
    """A search as the API answers it; times are ISO 8601 in UTC."""

    id: str
    name: str
    state: str
    reason: str | None
    waiting_for: str | None
    progress: Progress
    spec: dict[str, Any]
    created_at: str
    started_at: str | None
    finished_at: str | None


class Attempt(TypedDict):
    """One run of a trial; ``seconds`` of wall-clock time."""

    number: int
    state: str
    slot: str
    reason: str | None
    seconds: float | None


class Trial(TypedDict):
    """A structure that was trained; ``macs`` per token, ``loss`` in nats per token."""

    id: str
    number: int
    state: str
    reason: str | None
    family: str
    theta: dict[str, float]
    width: int
    omega: float
    psi: float
    nu: float
    params: int
    macs: int
    seed: int
    loss: float | None
    attempts: list[Attempt]


class Measurement(TypedDict):
    """A point of the learning curve; ``loss`` in nats per token, held out."""

    step: int
    tokens: int
    train_flops: float
    loss: float


class Replicate(TypedDict):
    """One of the seeds that a structure was trained from."""

    trial_id: str
    seed: int
    loss: float


class Ranked(TypedDict):
    """A structure with its place, the mean loss of its replicates, and the first of its trials."""

    rank: int
    loss: float
    loss_sd: float | None
    replicates: list[Replicate]
    trial: Trial


class Problem(TypedDict):
    """Why a request was refused (RFC 9457)."""

    status: int
    code: str
    detail: str
    errors: NotRequired[list[dict[str, str]]]


class Unreachable(Exception):
    """Nothing that speaks this API answers at the address."""


class Refused(Exception):
    """The service refused a request; ``problem`` says why, field by field."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        lines = [problem["detail"], *(f"  {e['pointer'] or '/'}: {e['detail']}" for e in problem.get("errors", []))]
        super().__init__("\n".join(lines))


class Client:
    """A connection to one service.

    Every method raises ``Unreachable`` where no service answers, and ``Refused`` where it says no.
    """

    def __init__(self, url: str | None = None, *, timeout: float = 30.0) -> None:
        self.url = (url or os.environ.get("EINSEARCH_URL") or DEFAULT_URL).rstrip("/")
        try:
            self._http = httpx2.Client(base_url=self.url, timeout=timeout)
        except httpx2.InvalidURL as error:
            raise Unreachable(f"{self.url!r} is not a URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def submit(self, spec: Mapping[str, Any]) -> Search:
        """Submit a search; see ``POST /v1/searches`` in the API's documentation for its fields."""
        return cast(Search, self._call("POST", "/v1/searches", json=spec))

    def search(self, search_id: str) -> Search:
        """One search with its progress."""
        return cast(Search, self._call("GET", _path("searches", search_id)))

    def searches(self) -> Iterator[Search]:
        """All searches, newest first, page by page."""
        for item in self._items("/v1/searches"):
            yield cast(Search, item)

    def trials(self, search_id: str) -> Iterator[Trial]:
        """The trials of a search, by number."""
        for item in self._items(f"{_path('searches', search_id)}/trials"):
            yield cast(Trial, item)

    def measurements(self, trial_id: str) -> Iterator[Measurement]:
        """The learning curve of the trial's latest attempt, by step."""
        for item in self._items(f"{_path('trials', trial_id)}/measurements"):
            yield cast(Measurement, item)

    def best(self, search_id: str, *, limit: int = 10) -> list[Ranked]:
        """The best structures of a search, best first."""
        answer = self._call("GET", f"{_path('searches', search_id)}/best", params={"limit": limit})
        return cast(list[Ranked], answer["items"])

    def pause(self, search_id: str) -> Search:
        """Start no more trials; those that run, run to their end."""
        return cast(Search, self._call("POST", f"{_path('searches', search_id)}:pause"))

    def resume(self, search_id: str) -> Search:
        """Go on after a pause."""
        return cast(Search, self._call("POST", f"{_path('searches', search_id)}:resume"))

    def cancel(self, search_id: str) -> Search:
        """Stop the trials that run and end the search."""
        return cast(Search, self._call("POST", f"{_path('searches', search_id)}:cancel"))

    def describe(self, theta: Theta, d_in: int, d_out: int) -> dict[str, Any]:
        """What follows from a structure and two widths: dims, cost, rank, taxonomy, family, muP rules, the einsum."""
        body = {"theta": dict(zip(AXES, theta.exponents, strict=True)), "d_in": d_in, "d_out": d_out}
        return self._call("POST", "/v1/structures:describe", json=body)

    def is_ready(self) -> bool:
        """Whether the service answers and can serve."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx2.HTTPError:
            return False

    def _items(self, path: str) -> Iterator[dict[str, Any]]:
        params: dict[str, str] = {}
        while True:
            page = self._call("GET", path, params=params)
            yield from page["items"]
            if page["next_page_token"] is None:
                return
            params = {"page_token": page["next_page_token"]}

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
            body = response.json()
        except httpx2.HTTPError as error:
            raise Unreachable(f"no einsearch service answers at {self.url}: {error}") from error
        except ValueError as error:
            raise Unreachable(f"what answers at {self.url} is not einsearch: no JSON came") from error
        if response.is_error:
            if not isinstance(body, dict) or "code" not in body:
                raise Unreachable(f"what answers at {self.url} is not einsearch: HTTP {response.status_code}")
            raise Refused(cast(Problem, body))
        return cast(dict[str, Any], body)


def _path(kind: str, identifier: str) -> str:
    # An id is one segment of the path, whatever somebody typed for it.
    return f"/v1/{kind}/{quote(identifier, safe='')}"
