import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI

from api.app import create_app
from service.settings import Settings
from tests.api.local import LocalClient

STUDIES = ("baselines", "calibrations", "fidelity-studies", "scaling-studies", "transfer-checks")
CALLS = {
    "POST /v1/searches",
    "POST /v1/searches:validate",
    "GET /v1/searches",
    "GET /v1/searches/{search_id}",
    "PATCH /v1/searches/{search_id}",
    "GET /v1/searches/{search_id}/best",
    "GET /v1/searches/{search_id}/comparison",
    "GET /v1/searches/{search_id}/pareto",
    "GET /v1/searches/{search_id}/hypervolume",
    "GET /v1/searches/{search_id}/events",
    "GET /v1/searches/{search_id}/export",
    "POST /v1/searches/{search_id}:pause",
    "POST /v1/searches/{search_id}:resume",
    "POST /v1/searches/{search_id}:cancel",
    "POST /v1/searches/{search_id}/trials",
    "GET /v1/searches/{search_id}/trials",
    "GET /v1/trials/{trial_id}",
    "GET /v1/trials/{trial_id}/measurements",
    "POST /v1/trials/{trial_id}:exclude",
    "POST /v1/trials/{trial_id}:include",
    "GET /v1/structures",
    "POST /v1/structures:describe",
    "GET /v1/presets",
    "POST /v1/webhooks",
    "GET /v1/webhooks",
    "GET /v1/webhooks/{webhook_id}",
    "DELETE /v1/webhooks/{webhook_id}",
    "POST /v1/webhooks/{webhook_id}:test",
    *(f"GET /v1/{plural}" for plural in STUDIES),
    *(f"GET /v1/{plural}/{{study_id}}" for plural in STUDIES),
    *(f"POST /v1/{plural}" for plural in STUDIES),
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
}
CHANGES_A_STATE = (":pause", ":resume", ":cancel", ":exclude", ":include")

IMPORTED = """
import sys
import api.app
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "ray", "optuna", "numpy"}))
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(home=tmp_path_factory.mktemp("app")))


@pytest.fixture(scope="module")
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    if isinstance(node, list):
        for value in node:
            yield from _references(value)


class TestDocument:
    def test_holds_every_call(self, operations: dict[str, Any]) -> None:
        assert set(operations) == CALLS

    def test_gives_every_call_a_name_and_a_sentence(self, operations: dict[str, Any]) -> None:
        assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
        for call, operation in operations.items():
            assert operation["description"].endswith("."), call
            assert operation["tags"], call

    def test_says_of_every_call_how_it_may_be_refused(self, operations: dict[str, Any]) -> None:
        for call, operation in operations.items():
            if "/v1/" not in call:
                continue
            expected = {"422"} if "requestBody" in operation or operation.get("parameters") else set()
            expected |= {"400", "415", "413"} if "requestBody" in operation else set()
            expected |= {"401", "403", "429"} if "security" in operation else set()
            expected |= {"404"} if "{" in call else set()
            expected |= {"409"} if call.endswith(CHANGES_A_STATE) or call.startswith("PATCH") else set()
            expected |= {"409"} if "Idempotency-Key" in str(operation.get("parameters")) else set()
            expected |= {"400"} if "page_token" in str(operation.get("parameters")) else set()
            refusals = {status for status in operation["responses"] if status.startswith("4")}
            # A request may also name something that is not there in its body.
            assert refusals - {"404"} == expected - {"404"}, call
            assert refusals >= expected, call

    def test_asks_for_a_key_wherever_there_is_something_to_see(self, operations: dict[str, Any]) -> None:
        open_to_all = {call for call, operation in operations.items() if "security" not in operation}
        assert open_to_all == {"GET /healthz", "GET /readyz", "GET /metrics"}

    def test_takes_a_key_of_the_senders_choice_wherever_something_is_made(self, operations: dict[str, Any]) -> None:
        repeatable = {call for call, operation in operations.items() if "Idempotency-Key" in str(operation)}
        assert repeatable == {call for call, operation in operations.items() if "201" in operation["responses"]}
        made = {"POST /v1/searches", "POST /v1/searches/{search_id}/trials", "POST /v1/webhooks"}
        assert repeatable == made | {f"POST /v1/{plural}" for plural in STUDIES}

    def test_says_of_every_refusal_that_it_is_a_problem(self, operations: dict[str, Any]) -> None:
        for call, operation in operations.items():
            for status, response in operation["responses"].items():
                if status.startswith("4"):
                    (media_type,) = response["content"]
                    assert media_type == "application/problem+json", call
                    schema = response["content"][media_type]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, call

    def test_knows_nothing_of_the_frameworks_own_errors(self, document: dict[str, Any]) -> None:
        assert "HTTPValidationError" not in str(document)
        assert "ValidationError" not in document["components"]["schemas"]

    def test_describes_problems_and_their_fields(self, document: dict[str, Any]) -> None:
        schemas = document["components"]["schemas"]
        fields = {"type", "title", "status", "code", "detail", "request_id", "errors"}
        assert set(schemas["Problem"]["properties"]) == fields
        assert set(schemas["ProblemField"]["properties"]) == {"pointer", "detail"}

    def test_refers_to_nothing_that_is_not_in_it(self, document: dict[str, Any]) -> None:
        references = set(_references(document))
        assert references
        for reference in references:
            node: Any = document
            for part in reference.removeprefix("#/").split("/"):
                node = node[part]

    def test_is_the_same_every_time(self, app: FastAPI, document: dict[str, Any]) -> None:
        assert app.openapi() == document

    def test_says_that_unknown_fields_are_refused(self, document: dict[str, Any]) -> None:
        for name in ("SearchSpec", "CharLM", "Space", "Constraints", "Budget", "Theta", "DescribeRequest"):
            assert document["components"]["schemas"][name]["additionalProperties"] is False, name


class TestDocumentation:
    def test_is_where_a_visitor_arrives(self, app: FastAPI) -> None:
        response = LocalClient(app).get("/", follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (307, "/docs")

    def test_loads_nothing_from_elsewhere(self, app: FastAPI) -> None:
        client = LocalClient(app)
        page = client.get("/docs").text
        addresses = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page)
        assert len(addresses) > 2
        for address in addresses:
            assert client.get(address).status_code == 200, address


class TestImport:
    def test_of_the_application_loads_nothing_heavy(self) -> None:
        done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
        assert done.stdout.split() == []
