"""The Python client: the REST API as methods, its refusals as one exception.

with Client("http://127.0.0.1:8000") as client:
    search = client.submit({"name": "first", "budget": {"max_trials": 8}})
"""

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self, Unpack, cast
from urllib.parse import quote

from einlayers.theta import AXES, Theta
from einsearch.answers import (
    Best,
    Comparison,
    Estimate,
    Event,
    ExportFormat,
    Health,
    Hypervolume,
    Measurement,
    NewWebhook,
    PauseMode,
    Ranked,
    Search,
    Structure,
    Study,
    StudyKind,
    Trial,
    Webhook,
    WebhookDetail,
    WebhookTest,
)
from einsearch.filters import StructureFilters, TrialFilters, as_parameters
from einsearch.patience import Patience
from einsearch.streaming import copy, follow_events
from einsearch.transport import Connection, Refused, Unreachable

__all__ = ["DEFAULT_URL", "Client", "Patience", "Refused", "Search", "Trial", "Unreachable"]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_PATIENCE = Patience()


class Client:
    """A connection to one service: at ``url``, or at that of ``EINSEARCH_URL``, or on this machine; as the owner of
    ``api_key``, or of that in ``EINSEARCH_API_KEY``, or of none.

    Every method raises ``Unreachable`` where no service answers, and ``Refused`` where it says no. Before it does, a
    request that can be sent twice without harm is sent again, for as long as ``patience`` lasts.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        patience: Patience = DEFAULT_PATIENCE,
    ) -> None:
        self.url = (url or os.environ.get("EINSEARCH_URL") or DEFAULT_URL).rstrip("/")
        key = (api_key or os.environ.get("EINSEARCH_API_KEY") or "").strip()
        self._patience = patience
        self._connection = Connection(self.url, key or None, timeout=timeout, patience=patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def health(self) -> Health | None:
        """What the service says of itself; asked once, without patience, and None where it does not answer."""
        return cast(Health | None, self._connection.health())

    def is_ready(self) -> bool:
        """Whether the service answers and can serve; asked once, without patience."""
        health = self.health()
        return health is not None and health["status"] != "unavailable"

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Search:
        """Submit a search; see ``POST /v1/searches`` in the API's documentation for its fields.

        Once, however often it has to be sent: every request has a key of its own. A program that may itself die before
        the answer comes gives its own ``idempotency_key``, and the same again when it asks anew.
        """
        return cast(Search, self._post("/v1/searches", spec, key=idempotency_key or str(uuid.uuid4())))

    def validate(self, spec: Mapping[str, Any]) -> Estimate:
        """Check a search and estimate its cost without submitting it."""
        return cast(Estimate, self._post("/v1/searches:validate", spec, repeatable=True))

    def search(self, search_id: str) -> Search:
        """One search with its progress."""
        return cast(Search, self._get(_path("searches", search_id)))

    def searches(self, *, owner: str | None = None) -> Iterator[Search]:
        """All searches, or those of an owner, newest first, page by page."""
        for item in self._items("/v1/searches", {} if owner is None else {"owner": owner}):
            yield cast(Search, item)

    def extend(self, search_id: str, budget: Mapping[str, float | None]) -> Search:
        """Give a search that has not ended another budget, as a whole; it goes on where the new one pays for more."""
        body = {"budget": dict(budget)}
        answer = self._connection.call("PATCH", _path("searches", search_id), json=body, repeatable=True)
        return cast(Search, answer)

    def pause(self, search_id: str, mode: PauseMode = "drain") -> Search:
        """Start no more trials; those that run, run to their end, or write a checkpoint and go on from it later."""
        return cast(Search, self._post(f"{_path('searches', search_id)}:pause", params={"mode": mode}))

    def resume(self, search_id: str) -> Search:
        """Go on after a pause."""
        return cast(Search, self._post(f"{_path('searches', search_id)}:resume"))

    def cancel(self, search_id: str) -> Search:
        """Stop the trials that run and end the search."""
        return cast(Search, self._post(f"{_path('searches', search_id)}:cancel"))

    def best(self, search_id: str, *, limit: int = 10) -> list[Ranked]:
        """The best structures of a search, best first."""
        return self.ranking(search_id, limit=limit)["items"]

    def ranking(self, search_id: str, *, limit: int = 10) -> Best:
        """The best structures of a search, best first, and how sure it is that the first of them is the best."""
        return cast(Best, self._get(f"{_path('searches', search_id)}/best", {"limit": str(limit)}))

    def compare(self, search_id: str, a: str, b: str) -> Comparison:
        """How probable it is that the structure of trial ``a`` is better than that of trial ``b``, and by how much."""
        return cast(Comparison, self._get(f"{_path('searches', search_id)}/comparison", {"a": a, "b": b}))

    def pareto(self, search_id: str, metrics: Sequence[str] = ("loss", "macs")) -> list[Ranked]:
        """The structures that no other one of the search beats in all of these metrics, by the first of them.

        Of loss, omega, psi, nu, params, macs, latency, peak_memory, seconds; psi is maximised, the others minimised, unless
        ``:max`` or ``:min`` follows.
        """
        parameters = {"metrics": ",".join(metrics)}
        return [cast(Ranked, item) for item in self._items(f"{_path('searches', search_id)}/pareto", parameters)]

    def hypervolume(
        self, search_id: str, metrics: Sequence[str] = ("loss", "macs"), *, reference: Sequence[float] | None = None
    ) -> Hypervolume:
        """How the front of a search grew with its trials.

        In two to four of loss, params, macs, latency, peak_memory, seconds. ``reference``: a value for each of them, such as
        that of an earlier answer to compare with; by default it is 1.1 times the worst of each by now.
        """
        parameters = {"metrics": ",".join(metrics)}
        if reference is not None:
            parameters["reference"] = ",".join(map(repr, map(float, reference)))
        return cast(Hypervolume, self._get(f"{_path('searches', search_id)}/hypervolume", parameters))

    def submit_study(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Study:
        """Begin a study, of the kind that ``spec`` says, once; see the studies in the API's documentation for the rest.

        Raises:
            KeyError: there is no such kind.
        """
        return cast(Study, self._post(_place(spec["kind"]), spec, key=idempotency_key or str(uuid.uuid4())))

    def presets(self) -> list[dict[str, Any]]:
        """Settings of proxies with a name, which a search or a study may say instead of spelling them out."""
        return list(self._get("/v1/presets")["items"])

    def study(self, kind: StudyKind, study_id: str) -> Study:
        """One study with its finding."""
        return cast(Study, self._get(f"{_place(kind)}/{quote(study_id, safe='')}"))

    def studies(self, kind: StudyKind) -> Iterator[Study]:
        """All studies of a kind, newest first, page by page."""
        for item in self._items(_place(kind), {}):
            yield cast(Study, item)

    def trials(self, search_id: str, **filters: Unpack[TrialFilters]) -> Iterator[Trial]:
        """The trials of a search that pass the filters, by number or by a metric, page by page."""
        parameters = as_parameters(filters, TrialFilters)
        return (cast(Trial, item) for item in self._items(f"{_path('searches', search_id)}/trials", parameters))

    def structures(self, **filters: Unpack[StructureFilters]) -> Iterator[Structure]:
        """The completed trials of all searches that pass the filters, by loss or another metric, page by page."""
        parameters = as_parameters(filters, StructureFilters)
        return (cast(Structure, item) for item in self._items("/v1/structures", parameters))

    def trial(self, trial_id: str) -> Trial:
        """One trial with its attempts."""
        return cast(Trial, self._get(_path("trials", trial_id)))

    def measurements(self, trial_id: str) -> Iterator[Measurement]:
        """The learning curve of the trial's latest attempt, by step."""
        for item in self._items(f"{_path('trials', trial_id)}/measurements", {}):
            yield cast(Measurement, item)

    def enqueue(
        self,
        search_id: str,
        theta: Theta,
        *,
        variant: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Trial:
        """Add a structure of your own to a search, once; it takes the next place in its budget. ``variant``: what is not as
        the proxy has it, such as ``{"num_experts": 4}``."""
        body = {"theta": _exponents(theta)} | ({"variant": dict(variant)} if variant else {})
        path = f"{_path('searches', search_id)}/trials"
        return cast(Trial, self._post(path, body, key=idempotency_key or str(uuid.uuid4())))

    def exclude(self, trial_id: str, reason: str) -> Trial:
        """Leave a trial out of every answer, and out of what the sampler learns from; it is kept."""
        return cast(Trial, self._post(f"{_path('trials', trial_id)}:exclude", {"reason": reason}))

    def include(self, trial_id: str) -> Trial:
        """Undo an exclusion."""
        return cast(Trial, self._post(f"{_path('trials', trial_id)}:include"))

    def describe(self, theta: Theta, d_in: int, d_out: int) -> dict[str, Any]:
        """What follows from a structure and two widths: dims, cost, rank, taxonomy, family, muP rules, the einsum."""
        body = {"theta": _exponents(theta), "d_in": d_in, "d_out": d_out}
        return self._post("/v1/structures:describe", body, repeatable=True)

    def events(self, search_id: str, after: int | None = None) -> Iterator[Event]:
        """What happens in a search, from its first event or after another one, as it happens, until it has ended.

        A connection that breaks is made anew, and goes on where the last one ended: each event comes once, in order.
        """
        return follow_events(self._connection, f"{_path('searches', search_id)}/events", after or 0, self._patience)

    def export(self, search_id: str, format: ExportFormat, file: IO[bytes]) -> int:
        """Write all trials of a search into a file that was opened for bytes; how many it takes."""
        return copy(self._connection, f"{_path('searches', search_id)}/export", {"format": format}, file)

    def create_webhook(
        self, url: str, *, search_id: str | None = None, kinds: Sequence[str] = ("search.state",)
    ) -> NewWebhook:
        """Have events of a search, or of all of yours, sent to ``url``. Keep the secret that signs them."""
        body = {"url": url, "search_id": search_id, "kinds": list(kinds)}
        return cast(NewWebhook, self._post("/v1/webhooks", body, key=str(uuid.uuid4())))

    def webhooks(self) -> Iterator[Webhook]:
        """Your webhooks, newest first."""
        for item in self._items("/v1/webhooks", {}):
            yield cast(Webhook, item)

    def webhook(self, webhook_id: str) -> WebhookDetail:
        """One of your webhooks, and how far it has been told."""
        return cast(WebhookDetail, self._get(_path("webhooks", webhook_id)))

    def test_webhook(self, webhook_id: str) -> WebhookTest:
        """Send a signed test to a webhook now; what came of it."""
        return cast(WebhookTest, self._post(f"{_path('webhooks', webhook_id)}:test"))

    def delete_webhook(self, webhook_id: str) -> None:
        """Send nothing more to a webhook."""
        self._connection.call("DELETE", _path("webhooks", webhook_id), repeatable=False)

    def _items(self, path: str, parameters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page = self._get(path, {**parameters, **token})
            yield from page["items"]
            if page["next_page_token"] is None:
                return
            token = {"page_token": page["next_page_token"]}

    def _get(self, path: str, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self._connection.call("GET", path, params=parameters, repeatable=True)

    def _post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        key: str | None = None,
        repeatable: bool = False,
    ) -> dict[str, Any]:
        headers = None if key is None else {"Idempotency-Key": key}
        repeatable = repeatable or key is not None
        return self._connection.call("POST", path, json=body, params=params, headers=headers, repeatable=repeatable)


_PLACES: Mapping[StudyKind, str] = {
    "baseline": "baselines",
    "calibration": "calibrations",
    "fidelity_study": "fidelity-studies",
    "scaling_study": "scaling-studies",
    "transfer_check": "transfer-checks",
}


def _place(kind: StudyKind) -> str:
    return f"/v1/{_PLACES[kind]}"


def _path(kind: str, identifier: str) -> str:
    # An id is one segment of the path, whatever somebody typed for it.
    return f"/v1/{kind}/{quote(identifier, safe='')}"


def _exponents(theta: Theta) -> dict[str, float]:
    return dict(zip(AXES, theta.exponents, strict=True))
