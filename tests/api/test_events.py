import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from httpx2 import EventSource, ServerSentEvent
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from api import events as streaming
from api.app import create_app
from einlayers.theta import NAMED
from search.states import SearchState
from service import events, keys, repositories
from service.keys import Scope
from service.models import Event, Reason
from service.notices import Notice
from service.settings import Settings
from service.transitions import move_search
from tests.api.local import LocalClient
from tests.api.problems import problem_of
from tests.rows import Rows
from tests.waiting import wait_for

NUM_STREAMS = 60
"""More than there are threads for requests, and than connections to the database."""


def _path(search_id: str) -> str:
    return f"/v1/searches/{search_id}/events"


def _events(response: httpx2.Response) -> list[ServerSentEvent]:
    """The events of an answer that has ended."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/event-stream")
    return list(EventSource(response))


def _numbers(client: TestClient, path: str, **headers: str) -> list[int]:
    return [int(event.id) for event in _events(client.get(path, headers=headers))]


def _move(rows: Rows, search_id: str, state: SearchState) -> None:
    with rows.database.write() as session:
        search = repositories.search_by_id(session, search_id, lock=True)
        move_search(session, search, state, Reason.USER)


def _finish(rows: Rows, search_id: str) -> None:
    _move(rows, search_id, SearchState.STOPPING)
    _move(rows, search_id, SearchState.CANCELLED)


@dataclass(frozen=True)
class Served:
    """An API that serves, and its address."""

    server: uvicorn.Server
    thread: threading.Thread
    url: str

    @contextmanager
    def stream(self, path: str, **headers: str) -> Iterator[Iterator[ServerSentEvent]]:
        """The events of a stream, as they come."""
        with (
            httpx2.Client(base_url=self.url, timeout=60, trust_env=False) as client,
            client.stream("GET", path, headers=headers) as response,
        ):
            assert response.status_code == 200
            yield iter(EventSource(response))

    def num_requests(self) -> int:
        """How many requests are being answered."""
        return len(self.server.server_state.tasks)


@contextmanager
def _serving(app: FastAPI) -> Iterator[Served]:
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", log_config=None, timeout_graceful_shutdown=5)
    )
    app.state.is_stopping = lambda: server.should_exit
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, what="the server")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(server, thread, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def served(settings: Settings) -> Iterator[Served]:
    """The API on a fresh database, at a port of this machine."""
    with _serving(create_app(settings)) as serving:
        yield serving


class TestReplay:
    def test_begins_with_the_first_event_and_ends_with_the_last(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search(state=SearchState.COMPLETED)
        told = _events(client.get(_path(search_id)))
        assert [event.id for event in told] == ["1", "2", "3", "4"]
        assert {event.event for event in told} == {"search.state"}
        states = [json.loads(event.data)["data"]["state"] for event in told]
        assert states == ["QUEUED", "RUNNING", "STOPPING", "COMPLETED"]

    def test_says_everything_of_an_event(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        trial_id = rows.completed(search_id, NAMED["btt"], 1.5)
        told = _events(client.get(f"{_path(search_id)}?follow=false"))
        with rows.database.read() as session:
            stored = [Notice.of(session.get_one(Event, (search_id, number + 1))) for number in range(len(told))]
        assert [event.data.encode() for event in told] == [notice.json() for notice in stored]
        assert [event.event for event in told] == [notice.kind for notice in stored]
        last = json.loads(told[-1].data)
        assert set(last) == {"number", "kind", "search_id", "trial_id", "at", "data"}
        assert (last["kind"], last["search_id"], last["trial_id"]) == ("trial.state", search_id, trial_id)
        assert (last["data"]["state"], last["data"]["loss"]) == ("COMPLETED", 1.5)
        assert last["at"].endswith("Z")

    def test_begins_where_the_client_left_off(self, client: TestClient, rows: Rows) -> None:
        path = _path(rows.search(state=SearchState.COMPLETED))
        assert _numbers(client, path, **{"Last-Event-ID": "2"}) == [3, 4]
        assert _numbers(client, f"{path}?after=3") == [4]
        assert _numbers(client, f"{path}?after=0") == [1, 2, 3, 4]
        assert _numbers(client, f"{path}?after=1", **{"Last-Event-ID": "3"}) == [4]

    def test_is_complete_wherever_it_was_cut(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search(state=SearchState.RUNNING)
        rows.all_proposed(search_id, NAMED.values())
        _finish(rows, search_id)
        everything = _numbers(client, _path(search_id))
        assert everything == list(range(1, len(everything) + 1))
        for cut in range(len(everything) - 1):
            assert _numbers(client, f"{_path(search_id)}?after={cut}") == everything[cut:]

    def test_is_complete_beyond_what_is_read_at_once(
        self, client: TestClient, rows: Rows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streaming, "MAX_EVENTS", 3)
        search_id = rows.search()
        rows.all_proposed(search_id, list(NAMED.values())[:5])
        assert _numbers(client, f"{_path(search_id)}?follow=false") == [1, 2, 3, 4, 5, 6, 7]
        _finish(rows, search_id)
        assert _numbers(client, _path(search_id)) == [1, 2, 3, 4, 5, 6, 7, 8, 9]

    def test_ends_at_once_where_it_does_not_follow(self, client: TestClient, rows: Rows) -> None:
        path = f"{_path(rows.search())}?follow=false"
        assert _numbers(client, path) == [1, 2]
        assert _numbers(client, f"{path}&after=2") == []
        assert _numbers(client, f"{path}&after={2**63 - 1}") == []

    def test_tells_a_browser_not_to_come_back_where_nothing_follows(self, client: TestClient, rows: Rows) -> None:
        response = client.get(_path(rows.search(state=SearchState.FAILED)), headers={"Last-Event-ID": "4"})
        assert (response.status_code, response.content) == (204, b"")

    def test_holds_what_happened_after_the_end(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search(state=SearchState.COMPLETED)
        with rows.database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            events.emit(session, search, "trial.excluded", {"number": 0, "reason": "too hot"})
        assert _numbers(client, _path(search_id)) == [1, 2, 3, 4, 5]
        assert _numbers(client, f"{_path(search_id)}?after=4") == [5]

    @pytest.mark.parametrize("value", ["x", "-1", "1.5", str(2**63), "9" * 5000, "nan", "1 2"])
    def test_refuses_what_is_no_number_of_an_event(self, value: str, client: TestClient, rows: Rows) -> None:
        path = _path(rows.search())
        problem_of(client.get(path, headers={"Last-Event-ID": value}), 422, "invalid_value")
        problem_of(client.get(path, params={"after": value}), 422, "invalid_value")

    def test_refuses_a_search_that_is_not_there(self, client: TestClient) -> None:
        problem_of(client.get(_path("0")), 404, "not_found")

    def test_needs_a_key_where_keys_are_needed(self, settings: Settings, rows: Rows) -> None:
        path = f"{_path(rows.search())}?follow=false"
        with LocalClient(create_app(settings.model_copy(update={"require_keys": True}))) as guarded:
            problem_of(guarded.get(path), 401, "unauthorized")
            with rows.database.write() as session:
                key = keys.create(session, owner="ann", scopes=[Scope.READ])
            assert _numbers(guarded, path, Authorization=f"Bearer {key}") == [1, 2]

    def test_is_documented_as_a_stream(self, client: TestClient) -> None:
        operation = client.get("/openapi.json").json()["paths"]["/v1/searches/{search_id}/events"]["get"]
        (schema,) = operation["responses"]["200"]["content"]["text/event-stream"].values()
        assert set(schema["properties"]["data"]["contentSchema"]["properties"]) >= {"number", "kind", "at", "data"}
        assert {"404", "422", "204"} <= set(operation["responses"])
        assert {"Last-Event-ID".lower(), "after", "follow"} <= {
            each["name"].lower() for each in operation["parameters"]
        }


class TestFollow:
    def test_tells_of_what_happens(self, served: Served, rows: Rows) -> None:
        search_id = rows.search(state=SearchState.QUEUED)
        with served.stream(_path(search_id)) as stream:
            assert next(stream).id == "1"
            _move(rows, search_id, SearchState.RUNNING)
            assert json.loads(next(stream).data)["data"]["state"] == "RUNNING"
            rows.trial(search_id, NAMED["btt"])
            assert next(stream).event == "trial.state"
            _finish(rows, search_id)
            assert [event.id for event in stream] == ["4", "5"]

    def test_keeps_the_connection_awake(self, served: Served, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
        with (
            httpx2.Client(base_url=served.url, timeout=60, trust_env=False) as client,
            client.stream("GET", f"{_path(rows.search())}?after=2") as response,
        ):
            assert next(response.iter_lines()).startswith(":")

    def test_does_not_ask_for_more_than_it_needs(self, served: Served, rows: Rows) -> None:
        search_id = rows.search()
        with served.stream(f"{_path(search_id)}?after=1") as stream:
            assert next(stream).id == "2"

    def test_serves_more_streams_than_there_are_threads_or_connections(self, served: Served, rows: Rows) -> None:
        ids = [rows.search() for _ in range(3)]
        told: list[list[str]] = [[] for _ in range(NUM_STREAMS)]

        async def read(client: httpx2.AsyncClient, index: int) -> None:
            async with client.stream("GET", _path(ids[index % 3])) as response:
                async for event in EventSource(response):
                    told[index].append(event.id)

        async def read_all() -> None:
            async with httpx2.AsyncClient(base_url=served.url, timeout=60, trust_env=False) as client:
                await asyncio.gather(*(read(client, index) for index in range(NUM_STREAMS)))

        reading = threading.Thread(target=lambda: asyncio.run(read_all()))
        reading.start()
        wait_for(lambda: told, until=lambda ids: all(len(each) == 2 for each in ids), what="all to be told")
        assert served.num_requests() == NUM_STREAMS
        assert httpx2.get(f"{served.url}{_path(ids[0])}?follow=false", trust_env=False).status_code == 200
        for search_id in ids:
            _finish(rows, search_id)
        reading.join()
        assert told == [["1", "2", "3", "4"]] * NUM_STREAMS

    def test_ends_when_the_client_goes_away(self, served: Served, rows: Rows) -> None:
        with served.stream(_path(rows.search())) as stream:
            next(stream)
            assert served.num_requests() == 1
        wait_for(served.num_requests, until=lambda num: num == 0, what="the stream to end")

    def test_ends_when_the_key_is_revoked(self, settings: Settings, rows: Rows) -> None:
        with rows.database.write() as session:
            key = keys.create(session, owner="ann", scopes=[Scope.READ])
        path = _path(rows.search())
        with (
            _serving(create_app(settings.model_copy(update={"require_keys": True}))) as served,
            served.stream(path, Authorization=f"Bearer {key}") as stream,
        ):
            assert [next(stream).id, next(stream).id] == ["1", "2"]
            with rows.database.write() as session:
                keys.revoke(session, key.split("_")[1])
            assert list(stream) == []

    def test_waits_for_a_database_that_does_not_answer(
        self, settings: Settings, rows: Rows, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "api.events")
        search_id, app = rows.search(), create_app(settings)
        is_away = threading.Event()

        @event.listens_for(app.state.database.engine, "before_cursor_execute")
        def fail(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if is_away.is_set():
                raise OperationalError(statement, {}, Exception("away"))

        with _serving(app) as served, served.stream(_path(search_id)) as stream:
            assert [next(stream).id, next(stream).id] == ["1", "2"]
            is_away.set()
            wait_for(lambda: "waits for the database" in caplog.text, what="a failure")
            _finish(rows, search_id)
            is_away.clear()
            assert [event.id for event in stream] == ["3", "4"]

    def test_does_not_keep_the_server_from_ending(
        self, served: Served, rows: Rows, caplog: pytest.LogCaptureFixture
    ) -> None:
        with served.stream(_path(rows.search())) as stream:
            next(stream)
            served.server.should_exit = True
            with suppress(httpx2.HTTPError):
                assert len(list(stream)) <= 1
        served.thread.join()
        assert "timeout graceful shutdown exceeded" not in caplog.text
