"""What the OpenAPI document says of answers beyond their bodies: their headers, and where they lead.

Links are for whoever reads the document instead of our prose: a person, a generator of clients, a test that walks through
the service. They stand here together, because each of them joins two endpoints.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.requests import REQUEST_ID

_STEER = ("get_search", "change_search", "pause_search", "resume_search", "cancel_search")
_LOOK = ("list_trials", "get_best", "compare_structures", "get_pareto", "export_search", "stream_events")
_JUDGE = ("get_trial", "list_measurements", "exclude_trial", "include_trial")
_HOOK = ("get_webhook", "try_webhook", "remove_webhook")


@dataclass(frozen=True, slots=True)
class Lead:
    """Where an answer leads: to these endpoints, with this parameter set to what is found in the answer."""

    targets: Sequence[str]
    parameter: str
    value: str

    def links(self) -> dict[str, Any]:
        """As the document has them, by their names."""
        return {
            target: {"operationId": target, "parameters": {self.parameter: f"$response.body#{self.value}"}}
            for target in self.targets
        }


_LEADS: Mapping[str, Sequence[Lead]] = {
    "submit_search": [Lead([*_STEER, *_LOOK, "add_trial"], "search_id", "/id")],
    "list_searches": [
        Lead(["get_search", "list_trials"], "search_id", "/items/0/id"),
        Lead(["list_searches"], "page_token", "/next_page_token"),
    ],
    "change_search": [Lead(["add_trial"], "search_id", "/id")],
    "pause_search": [Lead(["resume_search", "change_search", "cancel_search"], "search_id", "/id")],
    "resume_search": [Lead(["pause_search", "cancel_search"], "search_id", "/id")],
    "cancel_search": [Lead(["get_search", "stream_events", "export_search"], "search_id", "/id")],
    "get_best": [Lead(["get_trial", "exclude_trial"], "trial_id", "/items/0/trial/id")],
    "get_pareto": [Lead(["get_trial"], "trial_id", "/items/0/trial/id")],
    "add_trial": [Lead(_JUDGE, "trial_id", "/id"), Lead(["get_search"], "search_id", "/search_id")],
    "list_trials": [
        Lead(_JUDGE, "trial_id", "/items/0/id"),
        Lead(["list_trials"], "page_token", "/next_page_token"),
    ],
    "exclude_trial": [Lead(["include_trial"], "trial_id", "/id")],
    "include_trial": [Lead(["exclude_trial"], "trial_id", "/id")],
    "list_structures": [
        Lead(["get_trial"], "trial_id", "/items/0/id"),
        Lead(["list_structures"], "page_token", "/next_page_token"),
    ],
    "add_webhook": [Lead(_HOOK, "webhook_id", "/id")],
    "list_webhooks": [
        Lead(["get_webhook"], "webhook_id", "/items/0/id"),
        Lead(["list_webhooks"], "page_token", "/next_page_token"),
    ],
}
"""By the endpoint whose answer it is, where it leads if the endpoint did as it was asked."""

_HEADERS: Mapping[str, Mapping[str, Any]] = {
    REQUEST_ID: {
        "description": "The id of the request, its own or one that it was given: a line of the service's log has it too",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "Location": {
        "description": "Where the new resource is",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Idempotency-Replayed": {
        "description": "That this answers a request which was carried out before",
        "schema": {"type": "string", "const": "true"},
    },
    "WWW-Authenticate": {
        "description": "How a request says who sends it",
        "required": True,
        "schema": {"type": "string", "const": "Bearer"},
    },
    "Retry-After": {
        "description": "In how many seconds to ask again",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
}
_SENT_WITH = {
    "201": ("Location", "Idempotency-Replayed"),
    "401": ("WWW-Authenticate",),
    "429": ("Retry-After",),
}


def complete(document: dict[str, Any]) -> None:
    """Add the headers and the links of all answers to a document."""
    document["components"]["headers"] = dict(_HEADERS)
    for operation in _operations(document):
        for status, response in operation["responses"].items():
            names = (REQUEST_ID, *_SENT_WITH.get(status, ()))
            response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
        for lead in _LEADS.get(operation["operationId"], ()):
            done = min(operation["responses"])  # of its statuses the one with which it does as it was asked
            operation["responses"][done].setdefault("links", {}).update(lead.links())


def methods_of(document: Mapping[str, Any], path: str) -> list[str]:
    """The methods that a path of the document may be asked with, in the order of the alphabet."""
    # No id has a colon: what follows one is an action of the resource, and not a resource of its own.
    matching = (
        operations
        for template, operations in document["paths"].items()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/:]+", template), path)
    )
    return sorted(method.upper() for operations in matching for method in operations)


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for operations in document["paths"].values():
        yield from operations.values()
