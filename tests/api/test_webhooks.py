import json
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from service import keys
from service.keys import Caller, Scope
from service.settings import Settings
from tests.api.local import LocalClient
from tests.api.problems import problem_of
from tests.receivers import receiving
from tests.rows import Rows

# Addresses, so that nothing is looked up; and nothing is sent to them either.
PUBLIC = "https://8.8.8.8/hook"


@pytest.fixture
def near(settings: Settings) -> Iterator[TestClient]:
    """A client of a service that may send to this machine."""
    allowed = settings.model_copy(update={"webhooks_to_private_addresses": True})
    with LocalClient(create_app(allowed)) as opened:
        yield opened


@pytest.fixture
def guarded(settings: Settings) -> Iterator[TestClient]:
    """A client of a service that asks for keys."""
    with LocalClient(create_app(settings.model_copy(update={"require_keys": True}))) as opened:
        yield opened


@pytest.fixture
def key_of(rows: Rows) -> Callable[..., dict[str, str]]:
    """Makes the headers that carry a new key of an owner."""

    def make(owner: str, scope: Scope = Scope.SUBMIT) -> dict[str, str]:
        with rows.database.write() as session:
            return {"Authorization": f"Bearer {keys.create(session, owner=owner, scopes=[scope])}"}

    return make


def _add(client: TestClient, url: str = PUBLIC, headers: Mapping[str, str] | None = None, **fields: Any) -> Any:
    response = client.post("/v1/webhooks", json={"url": url, **fields}, headers=headers)
    assert response.status_code == 201, response.text
    return response.json()


class TestAdd:
    def test_shows_the_secret_once(self, client: TestClient) -> None:
        response = client.post("/v1/webhooks", json={"url": PUBLIC})
        made = response.json()
        assert response.status_code == 201
        assert response.headers["Location"] == f"/v1/webhooks/{made['id']}"
        assert (made["url"], made["search_id"], made["kinds"]) == (PUBLIC, None, ["search.state"])
        assert len(made.pop("secret")) >= 32
        assert client.get("/v1/webhooks").json() == {"items": [made], "next_page_token": None}
        assert client.get(f"/v1/webhooks/{made['id']}").json() == {**made, "deliveries": []}

    def test_takes_a_search_and_kinds(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        made = _add(client, search_id=search_id, kinds=["trial.state", "search.state"])
        assert (made["search_id"], made["kinds"]) == (search_id, ["trial.state", "search.state"])

    def test_gives_every_webhook_a_secret_of_its_own(self, client: TestClient) -> None:
        assert len({_add(client)["secret"] for _ in range(5)}) == 5

    def test_makes_one_however_often_it_is_sent(self, client: TestClient) -> None:
        first, second = (
            client.post("/v1/webhooks", json={"url": PUBLIC}, headers={"Idempotency-Key": "1"}) for _ in range(2)
        )
        assert first.json() == second.json()
        assert second.headers["Idempotency-Replayed"] == "true"
        assert len(client.get("/v1/webhooks").json()["items"]) == 1

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({}, "/url"),
            ({"url": 1}, "/url"),
            ({"url": "ftp://example.org"}, "/url"),
            ({"url": "http://me:hunter2@example.org"}, "/url"),
            ({"url": "x" * 10_000}, "/url"),
            ({"url": "http://127.0.0.1:8000/"}, "/url"),
            ({"url": "http://2130706433/"}, "/url"),
            ({"url": "http://[::ffff:10.0.0.1]/"}, "/url"),
            ({"url": "http://169.254.169.254/latest/meta-data"}, "/url"),
            ({"url": "https://a..b/"}, "/url"),
            ({"url": PUBLIC, "kinds": []}, "/kinds"),
            ({"url": PUBLIC, "kinds": ["search.state", "search.state"]}, "/kinds"),
            ({"url": PUBLIC, "kinds": ["test"]}, "/kinds/0"),
            ({"url": PUBLIC, "kinds": "search.state"}, "/kinds"),
            ({"url": PUBLIC, "search_id": "../x"}, "/search_id"),
            ({"url": PUBLIC, "secret": "mine"}, "/secret"),
        ],
    )
    def test_says_where_a_request_is_wrong(self, body: Mapping[str, Any], pointer: str, client: TestClient) -> None:
        problem = problem_of(client.post("/v1/webhooks", json=body), 422, "invalid_value")
        assert [error.pointer for error in problem.errors] == [pointer]
        assert "hunter2" not in problem.model_dump_json()
        assert client.get("/v1/webhooks").json()["items"] == []

    def test_refuses_a_search_that_is_not_there(self, client: TestClient) -> None:
        problem_of(client.post("/v1/webhooks", json={"url": PUBLIC, "search_id": "0"}), 404, "not_found")

    def test_refuses_the_search_of_another(
        self, guarded: TestClient, rows: Rows, key_of: Callable[..., dict[str, str]]
    ) -> None:
        search_id = rows.search(caller=Caller(owner="ann", scopes=frozenset({Scope.SUBMIT})))
        body = {"url": PUBLIC, "search_id": search_id}
        problem_of(guarded.post("/v1/webhooks", json=body, headers=key_of("bob")), 403, "forbidden")
        for headers in (key_of("ann"), key_of("root", Scope.ADMIN)):
            _add(guarded, headers=headers, search_id=search_id)

    def test_needs_a_key_that_may_submit(
        self, guarded: TestClient, key_of: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked_up: list[object] = []
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: looked_up.append(args))
        body = {"url": "https://receiver.example/"}
        problem_of(guarded.post("/v1/webhooks", json=body), 401, "unauthorized")
        problem_of(guarded.post("/v1/webhooks", json=body, headers=key_of("ann", Scope.READ)), 403, "forbidden")
        assert looked_up == []


class TestList:
    def test_has_pages_newest_first(self, client: TestClient) -> None:
        ids = [_add(client)["id"] for _ in range(5)]
        found, token = [], ""
        while token is not None:
            page = client.get(f"/v1/webhooks?page_size=2{token and f'&page_token={token}'}").json()
            found += [item["id"] for item in page["items"]]
            token = page["next_page_token"]
        assert found == ids[::-1]


class TestOwners:
    def test_see_their_own_alone(self, guarded: TestClient, key_of: Callable[..., dict[str, str]]) -> None:
        ann, bob = key_of("ann"), key_of("bob")
        path = f"/v1/webhooks/{_add(guarded, headers=ann)['id']}"
        assert guarded.get("/v1/webhooks", headers=bob).json()["items"] == []
        problem_of(guarded.get(path, headers=bob), 404, "not_found")
        problem_of(guarded.delete(path, headers=bob), 404, "not_found")
        problem_of(guarded.post(f"{path}:test", headers=bob), 404, "not_found")
        assert guarded.get(path, headers=ann).status_code == 200


class TestRemove:
    def test_leaves_nothing(self, client: TestClient, rows: Rows) -> None:
        rows.search()
        path = f"/v1/webhooks/{_add(client)['id']}"
        response = client.delete(path)
        assert (response.status_code, response.content) == (204, b"")
        problem_of(client.get(path), 404, "not_found")
        problem_of(client.delete(path), 404, "not_found")


class TestDeliveries:
    def test_show_how_far_it_has_been_told(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        (delivery,) = client.get(f"/v1/webhooks/{_add(client)['id']}").json()["deliveries"]
        assert delivery.pop("not_before").endswith("Z")
        assert delivery == {"search_id": search_id, "delivered": 2, "failures": 0, "last_error": None}


class TestTest:
    def test_sends_a_signed_event_now(self, near: TestClient) -> None:
        with receiving() as receiver:
            webhook = _add(near, f"{receiver.url}/hook")
            answer = near.post(f"/v1/webhooks/{webhook['id']}:test").json()
        assert answer.pop("seconds") > 0
        assert answer == {"ok": True, "status": 200, "error": None}
        (request,) = receiver.requests
        sent = json.loads(request.body)
        assert sent.pop("at").endswith("Z")
        assert sent == {
            "number": 0,
            "kind": "test",
            "search_id": None,
            "trial_id": None,
            "data": {"webhook_id": webhook["id"]},
        }
        assert request.headers["Einsearch-Event"] == "test"
        assert request.headers["Einsearch-Signature"].startswith("v1=")

    def test_says_what_a_receiver_answered_that_did_not_like_it(self, near: TestClient) -> None:
        with receiving(lambda index: 500) as receiver:
            answer = near.post(f"/v1/webhooks/{_add(near, receiver.url)['id']}:test").json()
        assert (answer["ok"], answer["status"]) == (False, 500)
        assert answer["error"] == "expected a status of 2xx, got 500"

    def test_says_why_there_was_no_answer(self, near: TestClient) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        response = near.post(f"/v1/webhooks/{_add(near, url)['id']}:test")
        assert response.status_code == 200
        assert (response.json()["ok"], response.json()["status"]) == (False, None)
        assert response.json()["error"]

    def test_sends_nothing_to_an_address_that_is_not_allowed_any_more(
        self, near: TestClient, client: TestClient
    ) -> None:
        with receiving() as receiver:
            webhook = _add(near, receiver.url)
            answer = client.post(f"/v1/webhooks/{webhook['id']}:test").json()
        assert receiver.requests == []
        assert "public addresses only" in answer["error"]

    def test_refuses_a_webhook_that_is_not_there(self, client: TestClient) -> None:
        problem_of(client.post("/v1/webhooks/0:test"), 404, "not_found")
