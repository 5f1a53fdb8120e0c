"""Requests that reach the service, over a network that fails now and then.

A request is sent again where that cannot do anything twice: it only reads, it carries an ``Idempotency-Key``, or it never
arrived. Everything else is told to the caller, as ``Unreachable`` or ``Refused``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import httpx2

from einlayers.errors import FieldError
from einsearch.answers import Problem
from einsearch.patience import Patience, Waiting

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_NEVER_ARRIVED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
BROKEN = (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError)
"""How a connection fails that may work when it is tried again."""

_AWAY = (502, 503, 504)
"""The database does not answer, or, of a proxy, the service does not."""


class Unreachable(Exception):
    """Nothing that speaks this API answers at the address."""


class Refused(Exception):
    """The service refused a request; ``problem`` says why, field by field."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        lines = [problem["detail"], *(f"  {e['pointer'] or '/'}: {e['detail']}" for e in problem.get("errors", []))]
        super().__init__("\n".join(lines))


class Connection:
    """A connection to the service at ``url``, as the owner of ``api_key``.

    Raises:
        FieldError: the URL, or the key, cannot be one.
    """

    def __init__(self, url: str, api_key: str | None, *, timeout: float, patience: Patience) -> None:
        self.url = url
        self._patience = patience
        self._met = False
        checked = _checked(url)
        self._http = httpx2.Client(
            base_url=checked,
            timeout=timeout,
            headers=_authorization(api_key),
            # A proxy of the environment is for other machines: through it, this one would be another.
            trust_env=checked.host not in _LOOPBACK,
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def health(self) -> dict[str, Any] | None:
        """What the service says of itself, now; None where it does not answer."""
        try:
            answer = self._http.get("/readyz").json()
        except (httpx2.HTTPError, ValueError):
            return None
        return answer if isinstance(answer, dict) and "checks" in answer else None

    def call(self, method: str, path: str, *, repeatable: bool, **options: Any) -> dict[str, Any]:
        """The JSON that a request is answered with; an empty dictionary where nothing is."""
        request = self._http.build_request(method, path, **options)
        response = self._send(request, repeatable=repeatable)
        return {} if response.status_code == 204 else self._json(response)

    @contextmanager
    def stream(
        self, path: str, *, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx2.Response]:
        """An answer to be read while it comes; where it breaks off, httpx2's errors come through."""
        request = self._http.build_request("GET", path, params=params, headers=headers)
        response = self._send(request, repeatable=True, stream=True)
        try:
            yield response
        finally:
            response.close()

    def _send(self, request: httpx2.Request, *, repeatable: bool, stream: bool = False) -> httpx2.Response:
        """The answer, once it is one that asking again would not change."""
        waiting = Waiting(self._patience)
        while True:
            try:
                response = self._http.send(request, stream=stream)
                if response.is_error:
                    response.read()
            except httpx2.HTTPError as error:
                again = isinstance(error, _NEVER_ARRIVED) or (repeatable and isinstance(error, BROKEN))
                if not (again and waiting.for_service(met=self._met)):
                    raise self._failure(error) from error
                continue
            self._met = True
            if not response.is_error:
                return response
            if not self._wait(response, waiting, repeatable):
                raise self._refusal(response)

    def _wait(self, response: httpx2.Response, waiting: Waiting, repeatable: bool) -> bool:
        asked_for = _retry_after(response)
        if response.status_code == 429:
            return waiting.for_limit(asked_for)
        again = response.status_code in _AWAY or (response.status_code == 409 and _code(response) == "in_flight")
        return repeatable and again and waiting.for_service(met=True, asked_for=asked_for)

    def _failure(self, error: httpx2.HTTPError) -> Unreachable:
        reason = str(error) or type(error).__name__
        if isinstance(error, BROKEN) and not isinstance(error, _NEVER_ARRIVED):
            return Unreachable(f"{self.url} was asked and its answer did not arrive: {reason}")
        return Unreachable(f"no einsearch service answers at {self.url}: {reason}\nStart one with: einsearch up")

    def _refusal(self, response: httpx2.Response) -> Exception:
        if _code(response) is None and response.status_code in _AWAY:
            return Unreachable(f"the service behind {self.url} does not answer: HTTP {response.status_code}")
        if _code(response) is None:
            return Unreachable(f"what answers at {self.url} is not einsearch: HTTP {response.status_code}")
        return Refused(cast(Problem, response.json()))

    def _json(self, response: httpx2.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Unreachable(f"what answers at {self.url} is not einsearch: no JSON object came")
        return answer


def _checked(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise FieldError("url", expected="a URL such as http://127.0.0.1:8000", got=url)
    return parsed


def _authorization(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
        # Without the key itself: what is shown ends up in logs.
        raise FieldError("api_key", expected="a key such as es_<id>_<secret>", got="other characters than a key has")
    return {"Authorization": f"Bearer {api_key}"}


def _retry_after(response: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:
        return None


def _code(response: httpx2.Response) -> str | None:
    """The code of the problem that a refusal of this API is."""
    try:
        problem = response.json()
    except ValueError:
        return None
    is_ours = isinstance(problem, dict) and problem.keys() >= {"status", "code", "detail"}
    return str(problem["code"]) if is_ours else None
