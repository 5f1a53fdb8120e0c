"""``Idempotent``, in an application of a few endpoints, and in the real one."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import Response
from sqlalchemy import select
from starlette.testclient import TestClient

from api.deps import MAX_SESSIONS, Writing
from api.errors import add_handlers
from api.idempotency import Flights, Idempotent
from api.schemas import Schema
from service.database import Database
from service.errors import WrongState
from service.models import IdempotencyKey
from tests.api.local import LocalClient
from tests.api.problems import problem_of
from tests.bodies import MONARCH
from tests.rows import Rows, contents

UUID = "8e03978e-40d5-43dd-bc93-6894a57f9324"


class Thing(Schema):
    """A resource."""

    id: str
    name: str


def _nothing() -> None:
    pass


@dataclass(slots=True)
class Things:
    """What there is, and what happens while a thing is made."""

    names: list[str] = field(default_factory=list)
    meanwhile: Callable[[], None] = _nothing
    owner: str = "ada"

    def make(self, name: str) -> Thing:
        """A new thing."""
        self.meanwhile()
        if not name:
            raise WrongState("a thing has a name")
        self.names.append(name)
        return Thing(id=f"{len(self.names):04x}", name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThingRequest:
    """A thing to make."""

    name: str


@pytest.fixture
def things() -> Things:
    return Things()


@pytest.fixture
def app(database: Database, things: Things) -> FastAPI:
    app = FastAPI()
    app.state.database = database
    app.state.flights = Flights()
    app.state.turns = asyncio.Semaphore(MAX_SESSIONS)
    add_handlers(app)

    @app.post("/v1/things", status_code=201)
    def make_thing(request: ThingRequest, session: Writing, idempotent: Idempotent) -> Thing:
        return idempotent.run(session, things.owner, lambda: things.make(request.name))

    @app.post("/v1/boxes/{box}/things", status_code=202)
    def make_thing_in_box(box: str, session: Writing, idempotent: Idempotent) -> Thing:
        return idempotent.run(session, things.owner, lambda: things.make(box))

    @app.post("/v1/closed/{box}/things", status_code=202)
    def fail_late(box: str, session: Writing, idempotent: Idempotent) -> Thing:
        idempotent.run(session, things.owner, lambda: things.make(box))
        raise WrongState("closed")

    return app


@pytest.fixture
def small_client(app: FastAPI) -> Iterator[TestClient]:
    """A client of the application of a few endpoints."""
    with LocalClient(app) as opened:
        yield opened


@pytest.fixture
def send(small_client: TestClient) -> Callable[..., Response]:
    def _send(name: str = "hammer", key: str | None = UUID, path: str = "/v1/things") -> Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return small_client.post(path, json={"name": name}, headers=headers)

    return _send


Send = Callable[..., Response]


def _essence(response: Response) -> tuple[int, str | None, bytes]:
    return response.status_code, response.headers.get("location"), response.content


class TestAnswers:
    def test_tell_of_the_resource_and_where_it_is(self, send: Send) -> None:
        response = send()
        assert response.status_code == 201
        assert response.headers["location"] == "/v1/things/0001"
        assert response.json() == {"id": "0001", "name": "hammer"}
        assert "idempotency-replayed" not in response.headers

    def test_are_the_same_for_the_same_key_and_say_so(self, send: Send, things: Things) -> None:
        first, second, third = send(), send(), send()
        assert things.names == ["hammer"]
        for again in (second, third):
            assert _essence(again) == _essence(first)
            assert again.headers["idempotency-replayed"] == "true"

    def test_are_new_without_a_key_and_with_another_one(self, send: Send, things: Things) -> None:
        keys = (None, None, "a", "b")
        assert [send(key=key).headers["location"][-1] for key in keys] == ["1", "2", "3", "4"]

    def test_are_not_for_other_owners(self, send: Send, things: Things) -> None:
        send()
        things.owner = "ben"
        assert send().json()["id"] == "0002"

    def test_have_the_status_and_the_place_of_their_endpoint(self, send: Send) -> None:
        first, second = send(path="/v1/boxes/7/things"), send(path="/v1/boxes/7/things")
        assert _essence(first) == _essence(second)
        assert (first.status_code, first.headers["location"]) == (202, "/v1/things/0001")

    def test_survive_a_restart(self, send: Send, app: FastAPI) -> None:
        first = send()
        app.state.flights = Flights()
        assert _essence(send()) == _essence(first)


class TestRefusals:
    def test_of_another_body_under_the_key(self, send: Send, things: Things) -> None:
        send("hammer")
        assert "choose another key" in problem_of(send("nail"), 422, "idempotency_key_reused").detail
        assert things.names == ["hammer"]

    def test_of_another_path_under_the_key(self, send: Send) -> None:
        send(path="/v1/boxes/7/things")
        problem_of(send(path="/v1/boxes/8/things"), 422, "idempotency_key_reused")

    def test_store_nothing_and_can_be_corrected(self, send: Send, things: Things, database: Database) -> None:
        problem_of(send(""), 409, "wrong_state")
        with database.read() as session:
            assert session.scalars(select(IdempotencyKey)).all() == []
        assert send("hammer").status_code == 201

    def test_of_the_same_request_while_it_is_being_answered(self, send: Send, things: Things) -> None:
        refused: list[Response] = []

        def send_again() -> None:
            things.meanwhile = _nothing
            refused.append(send())

        things.meanwhile = send_again
        first = send()
        problem_of(refused[0], 409, "in_flight")
        assert refused[0].headers["retry-after"] == "1"
        assert _essence(send()) == _essence(first)
        assert things.names == ["hammer"]

    @pytest.mark.parametrize("key", ["", "x" * 201, "tab\there", "\xfc", "line\x7f"])
    def test_of_a_key_that_is_none(self, key: str, small_client: TestClient, things: Things) -> None:
        headers = {b"Idempotency-Key": key.encode("latin-1")}
        response = small_client.post("/v1/things", json={"name": "hammer"}, headers=headers)
        (problem,) = problem_of(response, 422, "invalid_value").errors
        assert problem.pointer == "Idempotency-Key"
        assert things.names == []

    @pytest.mark.parametrize("key", ["x", "x" * 200, '"quoted"', "a key of words, ~!"])
    def test_spare_every_key_that_can_be_printed(self, key: str, send: Send) -> None:
        assert _essence(send(key=key)) == _essence(send(key=key))


class TestTransaction:
    def test_that_fails_later_takes_the_answer_and_the_flight_with_it(self, send: Send, things: Things) -> None:
        for expected in (["7"], ["7", "7"]):
            problem_of(send(path="/v1/closed/7/things"), 409, "wrong_state")
            assert things.names == expected


class TestDocument:
    def test_has_the_key_and_the_resource(self, app: FastAPI) -> None:
        operation: dict[str, Any] = app.openapi()["paths"]["/v1/things"]["post"]
        (parameter,) = operation["parameters"]
        assert (parameter["name"], parameter["in"], parameter["required"]) == ("Idempotency-Key", "header", False)
        assert "Idempotency-Replayed" in parameter["description"]
        schema = operation["responses"]["201"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Thing"}


class TestService:
    def test_makes_everything_once(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        for path, body in (
            ("/v1/searches", {"name": "test", "budget": {"max_trials": 1}}),
            (f"/v1/searches/{search_id}/trials", {"theta": dict(MONARCH)}),
            ("/v1/webhooks", {"url": "https://8.8.8.8/hook"}),
        ):
            key = {"Idempotency-Key": path}
            first = client.post(path, json=body, headers=key)
            before = contents(rows.database)
            second = client.post(path, json=body, headers=key)
            assert first.status_code == 201, first.text
            assert _essence(second) == _essence(first)
            assert second.headers["idempotency-replayed"] == "true"
            assert contents(rows.database) == before
            assert client.get(first.headers["location"]).json()["id"] == first.json()["id"]
