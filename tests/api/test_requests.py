import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import add_handlers
from api.requests import RequestIds
from service import logs
from tests.api.local import LocalClient
from tests.api.problems import problem_of

SENT = "from-the.client_42"
NOT_ACCEPTED = ["", "x" * 65, "two words", "semi;colon", "\xfc", "<script>"]


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    add_handlers(app)
    app.add_middleware(RequestIds)

    @app.get("/things/{name}")
    @app.post("/things/{name}")
    def log_something(name: str, request: Request) -> str:
        if name == "owned":
            request.state.owner = "ada"
        if name == "broken":
            raise RuntimeError("secret")
        logging.getLogger("tests").warning("working")
        return name

    @app.post("/body")
    async def read_body(request: Request) -> int:
        return len(await request.body())

    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with LocalClient(app, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What has been logged while requests were answered."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.formatter("json"))
    names = ("tests", "api.requests")
    for name in names:
        caplog.set_level(logging.DEBUG, name)
        logging.getLogger(name).addHandler(handler)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for name in names:
        logging.getLogger(name).removeHandler(handler)


Lines = Callable[[], list[dict[str, Any]]]


class TestId:
    def test_is_made_up_for_every_request(self, client: TestClient) -> None:
        first, second = (client.get("/things/a").headers["x-request-id"] for _ in range(2))
        assert len(first) == len(second) == 16
        assert first != second

    def test_is_the_one_that_was_sent(self, client: TestClient) -> None:
        for path in ("/things/a", "/nowhere", "/things/broken"):
            response = client.get(path, headers={"X-Request-Id": SENT})
            assert response.headers.get_list("x-request-id") == [SENT]

    @pytest.mark.parametrize("sent", NOT_ACCEPTED)
    def test_is_made_up_where_the_one_that_was_sent_is_none(self, sent: str, client: TestClient) -> None:
        response = client.get("/things/a", headers={b"X-Request-Id": sent.encode("latin-1")})
        assert len(response.headers["x-request-id"]) == 16

    def test_stands_in_problems(self, client: TestClient) -> None:
        for path, status in (("/nowhere", 404), ("/things/broken", 500)):
            response = client.get(path, headers={"X-Request-Id": SENT})
            assert problem_of(response, status).request_id == SENT
        response = client.get("/nowhere")
        assert problem_of(response, 404).request_id == response.headers["x-request-id"]

    def test_stands_in_every_line_that_is_logged_meanwhile(self, client: TestClient, lines: Lines) -> None:
        client.get("/things/a", headers={"X-Request-Id": "one"})
        client.get("/things/a", headers={"X-Request-Id": "two"})
        assert [line["request_id"] for line in lines()] == ["one", "one", "two", "two"]

    def test_is_known_to_the_server_that_logs_a_fault(self, app: FastAPI, lines: Lines) -> None:
        async def serve() -> None:
            with pytest.raises(RuntimeError):
                await app(_scope("GET", "/things/broken"), _no_body, _ignore)
            logging.getLogger("tests").error("exception in the application")

        anyio.run(serve)
        assert lines()[-1]["request_id"] == SENT


class TestLine:
    def test_tells_of_a_change(self, client: TestClient, lines: Lines) -> None:
        client.post("/things/a", headers={"X-Request-Id": SENT})
        line = lines()[-1]
        assert line.pop("time")
        milliseconds = line.pop("ms")
        assert milliseconds >= 0
        assert line == {
            "level": "INFO",
            "logger": "api.requests",
            "message": f"POST /things/a 200 in {milliseconds:g} ms",
            "method": "POST",
            "path": "/things/a",
            "status": 200,
            "request_id": SENT,
        }

    def test_names_the_owner_where_it_is_known(self, client: TestClient, lines: Lines) -> None:
        client.post("/things/owned")
        assert lines()[-1]["owner"] == "ada"
        assert lines()[-1]["message"].endswith(" for ada")

    def test_of_a_request_that_only_reads_is_for_debugging(self, client: TestClient, lines: Lines) -> None:
        client.get("/things/a")
        assert lines()[-1]["level"] == "DEBUG"

    @pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/things/broken", 500)])
    def test_tells_of_refusals_and_faults(self, path: str, status: int, client: TestClient, lines: Lines) -> None:
        client.post(path)
        assert (lines()[-1]["level"], lines()[-1]["status"]) == ("INFO", status)

    def test_is_one_line_and_not_too_long_whatever_the_path(self, client: TestClient, lines: Lines) -> None:
        client.post("/things/%0Afake%20line" + "x" * 1000)
        assert lines()[-1]["path"].startswith("/things/%0Afake%20line")
        assert len(lines()[-1]["path"]) == 200


class TestDisconnection:
    @pytest.mark.parametrize("parsed", [False, True])
    def test_while_the_body_is_read_is_no_fault(self, parsed: bool, app: FastAPI, lines: Lines) -> None:
        if parsed:

            @app.post("/parsed")
            def parse_body(body: dict[str, int]) -> None:
                raise AssertionError("there is no body")

        messages: Iterator[Message] = iter(
            [{"type": "http.request", "body": b'{"a"', "more_body": True}, {"type": "http.disconnect"}]
        )
        sent: list[Message] = []

        async def receive() -> Message:
            return next(messages)

        async def send(message: Message) -> None:
            sent.append(message)

        scope = _scope("POST", "/parsed" if parsed else "/body")
        anyio.run(app, scope, receive, send)
        assert sent[0]["status"] == 400
        assert [line["level"] for line in lines()] == ["INFO"]

    def test_while_events_flow_is_no_fault(self) -> None:
        anyio.run(RequestIds(_failing(anyio.BrokenResourceError())), _scope("GET", "/"), _no_body, _ignore)

    def test_does_not_hide_a_fault(self) -> None:
        app = RequestIds(_failing(anyio.BrokenResourceError(), RuntimeError("a bug")))
        with pytest.raises(ExceptionGroup) as caught:
            anyio.run(app, _scope("GET", "/"), _no_body, _ignore)
        assert caught.group_contains(RuntimeError)
        assert not caught.group_contains(anyio.BrokenResourceError)


def _failing(*errors: Exception) -> ASGIApp:
    """An application whose tasks fail, as tasks of a group do."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ExceptionGroup("tasks", [ExceptionGroup("tasks of a task", errors)])

    return app


def _scope(method: str, path: str) -> Scope:
    headers = [(b"x-request-id", SENT.encode()), (b"content-type", b"application/json")]
    return {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "root_path": ""}


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _ignore(message: Message) -> None:
    pass
