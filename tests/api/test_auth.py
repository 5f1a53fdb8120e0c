import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import Response
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from api.auth import Admin, Reader, Submitter
from api.errors import add_handlers
from api.limits import RateLimit
from service import keys, migrate
from service.database import Database
from service.keys import Limits, Scope
from service.settings import Settings
from tests.api.local import LocalClient
from tests.api.problems import problem_of
from tests.rows import Rows


def make_app(database: Database, **settings: Any) -> FastAPI:
    """An application of three endpoints, each for callers of another scope, and of one for everybody."""
    app = FastAPI()
    app.state.database = database
    app.state.settings = Settings(**settings)
    app.state.rate_limit = RateLimit(lambda: 0.0)
    add_handlers(app)

    @app.get("/read")
    def read(caller: Reader) -> str:
        return caller.owner

    @app.post("/submit")
    def submit(caller: Submitter) -> str:
        return caller.owner

    @app.delete("/admin/{number}")
    def admin(caller: Admin, number: int, limit: int = 0) -> str:
        return caller.owner

    @app.get("/open")
    def open_() -> str:
        return "everybody"

    return app


CALLS = {Scope.READ: ("GET", "/read"), Scope.SUBMIT: ("POST", "/submit"), Scope.ADMIN: ("DELETE", "/admin/1")}

Opens = Callable[..., TestClient]


@pytest.fixture
def opens(database: Database) -> Iterator[Opens]:
    """Opens clients of an application with some settings."""
    clients = []

    def opens(**settings: Any) -> TestClient:
        clients.append(LocalClient(make_app(database, **settings), client=("10.0.0.1", 1)))
        return clients[-1]

    yield opens
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def guarded(shared: Rows) -> Iterator[TestClient]:
    """A client of an application that needs keys and tells its faults."""
    with LocalClient(make_app(shared.database, require_keys=True)) as opened:
        yield opened


def make_key(database: Database, *scopes: Scope, owner: str = "ann", limits: Limits | None = None) -> str:
    with database.write() as session:
        return keys.create(session, owner=owner, scopes=scopes or [Scope.READ], limits=limits)


def revoke(database: Database, key: str) -> None:
    with database.write() as session:
        keys.revoke(session, key.split("_")[1])


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def refused(response: Response, status: int = 401, code: str = "unauthorized") -> str:
    detail = problem_of(response, status, code).detail
    assert response.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
    return detail


class TestWithoutNeed:
    @pytest.mark.parametrize("call", CALLS.values())
    def test_a_caller_without_a_key_may_do_everything(self, opens: Opens, call: tuple[str, str]) -> None:
        assert opens().request(*call).json() == "local"

    @pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
    def test_the_machine_itself_is_asked(self, host: str, opens: Opens) -> None:
        assert opens().get("/read", headers={"Host": host}).json() == "local"

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io"]
    )
    def test_another_name_that_leads_here_is_not(self, host: str, opens: Opens, database: Database) -> None:
        assert "localhost" in refused(opens().get("/read", headers={"Host": host}))
        assert opens().get("/read", headers={"Host": host, **bearer(make_key(database))}).json() == "ann"

    def test_a_key_says_who_asks(self, opens: Opens, database: Database) -> None:
        assert opens().get("/read", headers=bearer(make_key(database))).json() == "ann"

    def test_a_key_that_comes_is_checked(self, opens: Opens, database: Database) -> None:
        key = make_key(database)
        revoke(database, key)
        assert "was revoked" in refused(opens().get("/read", headers=bearer(key)))

    def test_a_key_allows_no_more_than_its_scopes(self, opens: Opens, database: Database) -> None:
        answer = opens().request(*CALLS[Scope.SUBMIT], headers=bearer(make_key(database)))
        assert "scope submit" in refused(answer, 403, "forbidden")


@pytest.mark.parametrize("settings", [{"require_keys": True}, {"host": "0.0.0.0"}])
class TestWithNeed:
    @pytest.mark.parametrize("call", CALLS.values())
    def test_a_caller_without_a_key_is_told_where_keys_come_from(
        self, opens: Opens, settings: dict[str, Any], call: tuple[str, str]
    ) -> None:
        detail = refused(opens(**settings).request(*call))
        assert "Authorization: Bearer es_<id>_<secret>" in detail
        assert "einsearch keys create" in detail

    def test_what_is_open_stays_open(self, opens: Opens, settings: dict[str, Any]) -> None:
        client = opens(**settings)
        assert client.get("/open").json() == "everybody"
        assert client.get("/openapi.json").status_code == client.get("/docs").status_code == 200

    @pytest.mark.parametrize(
        ("scope", "allowed"), [(Scope.READ, 1), (Scope.SUBMIT, 2), (Scope.ADMIN, 3)], ids=list(Scope)
    )
    def test_a_key_opens_what_its_scope_implies(
        self, opens: Opens, database: Database, settings: dict[str, Any], scope: Scope, allowed: int
    ) -> None:
        headers = bearer(make_key(database, scope))
        client = opens(**settings)
        answers = [client.request(*call, headers=headers) for call in CALLS.values()]
        assert [answer.status_code for answer in answers] == [200] * allowed + [403] * (3 - allowed)
        for answer in answers[allowed:]:
            refused(answer, 403, "forbidden")

    def test_who_asks_is_checked_before_what_is_asked(self, opens: Opens, settings: dict[str, Any]) -> None:
        refused(opens(**settings).delete("/admin/no-number?limit=none"))


class TestOwner:
    def test_is_told_to_what_logs_the_request(self, opens: Opens, database: Database) -> None:
        client = opens()
        owners = []

        async def log(scope: ASGIScope, receive: Receive, send: Send) -> None:
            await client.app(scope, receive, send)
            owners.append(scope["state"]["owner"])

        logged = LocalClient(log)
        logged.get("/read")
        logged.post("/submit", headers=bearer(make_key(database)))
        assert owners == ["local", "ann"]


class TestRevokedKey:
    def test_is_refused_from_the_next_request_on(self, opens: Opens, database: Database) -> None:
        client, key = opens(require_keys=True), make_key(database)
        assert client.get("/read", headers=bearer(key)).status_code == 200
        revoke(database, key)
        refused(client.get("/read", headers=bearer(key)))


class TestHeader:
    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_names_its_scheme_in_any_case(self, opens: Opens, database: Database, scheme: str) -> None:
        headers = {"Authorization": f"{scheme} {make_key(database)}"}
        assert opens(require_keys=True).get("/read", headers=headers).json() == "ann"

    @pytest.mark.parametrize(
        "value", ["{}", "Basic {}", "Bearer", "Bearer ", "Bearer{}", "Token {}", "Bearer {} {}", ""]
    )
    @pytest.mark.parametrize("require_keys", [True, False])
    def test_of_another_form_is_refused_needed_or_not(
        self, opens: Opens, database: Database, value: str, require_keys: bool
    ) -> None:
        headers = {"Authorization": value.replace("{}", make_key(database))}
        refused(opens(require_keys=require_keys).get("/read", headers=headers))

    def test_that_comes_twice_is_refused(self, opens: Opens, database: Database) -> None:
        header = ("Authorization", f"Bearer {make_key(database)}")
        assert "expected one header" in refused(opens().get("/read", headers=[header, header]))

    @given(value=st.binary().flatmap(lambda raw: st.sampled_from([raw, b"Bearer " + raw, b"Bearer es_" + raw])))
    def test_of_any_bytes_is_refused_and_breaks_nothing(self, guarded: TestClient, value: bytes) -> None:
        guarded.app.state.rate_limit = RateLimit()  # type: ignore[attr-defined]  # an ASGI application, to its client
        refused(guarded.get("/read", headers=[(b"Authorization", value)]))


class TestDatabase:
    def test_that_does_not_answer_makes_no_key_wrong(self, tmp_path: Path) -> None:
        database = Database(f"postgresql+psycopg://user:secret@/name?host={tmp_path}")
        client = LocalClient(make_app(database, require_keys=True), raise_server_exceptions=False)
        headers = bearer(f"es_{'0' * 12}_{'A' * 43}")
        problem_of(client.get("/read", headers=headers), 503, "database_unavailable")
        refused(client.get("/read"))


def passed(client: TestClient, **options: Any) -> int:
    """How many requests are answered until one is not."""
    for number in range(1000):
        response = client.get("/read", **options)
        if response.status_code == 429:
            assert "requests a minute" in problem_of(response, 429, "too_many_requests").detail
            assert int(response.headers["Retry-After"]) >= 1
            return number
    raise AssertionError("nothing is limited")


class TestRateLimit:
    def test_is_one_per_key(self, opens: Opens, database: Database) -> None:
        client = opens(requests_per_minute=5)
        first, second = make_key(database), make_key(database)
        assert passed(client, headers=bearer(first)) == 5
        assert passed(client, headers=bearer(second)) == 5

    def test_of_a_key_goes_before_that_of_the_settings(self, opens: Opens, database: Database) -> None:
        client = opens(requests_per_minute=5)
        assert passed(client, headers=bearer(make_key(database, limits=Limits(requests_per_minute=2)))) == 2
        assert passed(client, headers=bearer(make_key(database, limits=Limits(requests_per_minute=9)))) == 9

    def test_is_one_per_host_where_there_is_no_key(self, opens: Opens) -> None:
        here = opens(requests_per_minute=5)
        there = LocalClient(here.app, client=("10.0.0.2", 1))
        assert passed(here) == 5
        assert passed(there) == 5

    def test_counts_wrong_keys_for_the_host_and_not_for_the_key_that_they_name(
        self, opens: Opens, database: Database
    ) -> None:
        client, key = opens(requests_per_minute=5, require_keys=True), make_key(database)
        assert passed(client, headers=bearer(key[:-4] + "AAAA")) == 5
        assert passed(client) == 0
        assert passed(client, headers=bearer(key)) == 5

    def test_counts_what_a_scope_does_not_allow(self, opens: Opens, database: Database) -> None:
        client, headers = opens(requests_per_minute=2), bearer(make_key(database))
        answers = [client.post("/submit", headers=headers).status_code for _ in range(3)]
        assert answers == [403, 403, 429]

    def test_leaves_alone_what_asks_for_no_caller(self, opens: Opens) -> None:
        client = opens(requests_per_minute=1)
        assert {client.get("/open").status_code for _ in range(20)} == {200}

    def test_is_there_without_being_put_there(self, database: Database) -> None:
        app = make_app(database, requests_per_minute=3)
        del app.state.rate_limit
        assert passed(LocalClient(app)) >= 3


class TestDocument:
    def test_says_of_every_call_which_scope_it_needs(self, database: Database) -> None:
        document = make_app(database).openapi()
        needed = {path: next(iter(call.values())).get("security") for path, call in document["paths"].items()}
        assert needed == {
            "/read": [{"ApiKey": ["read"]}],
            "/submit": [{"ApiKey": ["submit"]}],
            "/admin/{number}": [{"ApiKey": ["admin"]}],
            "/open": None,
        }

    def test_says_what_a_key_is(self, database: Database) -> None:
        (scheme,) = make_app(database).openapi()["components"]["securitySchemes"].values()
        assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
        assert scheme["bearerFormat"] == "es_<id>_<secret>"


@contextmanager
def serving(home: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """The API as a process of its own, in a home with a database."""
    migrate.upgrade(Settings(home=home).database)
    process = subprocess.Popen(
        [sys.executable, "-m", "api"],
        env={"EINSEARCH_HOME": str(home), "EINSEARCH_PORT": "0", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


class TestProcess:
    def test_refuses_to_listen_to_other_machines_without_a_key(self, tmp_path: Path) -> None:
        with serving(tmp_path, EINSEARCH_HOST="0.0.0.0") as process:
            assert process.wait(60) == 1
            assert process.stderr is not None
            *_, said = process.stderr
        assert said.endswith("create one with: einsearch keys create --owner NAME --scope admin\n")

    def test_listens_once_there_is_one(self, tmp_path: Path) -> None:
        migrate.upgrade(Settings(home=tmp_path).database)
        database = Database(Settings(home=tmp_path).database)
        make_key(database)
        database.close()
        with serving(tmp_path, EINSEARCH_REQUIRE_KEYS="1") as process:
            assert process.stderr is not None
            assert any("Uvicorn running" in line for line in process.stderr)

    @pytest.mark.parametrize(
        ("variable", "value", "words"),
        [
            ("LOG_LEVEL", "LOUD", "settings: Unknown level: 'LOUD'"),
            ("DATABASE_URL", "mysql://user:secret@host/name", "settings: 1 validation error"),
            ("DATABASE_URL", "postgresql+psycopg://user:secret@/name?host=/nowhere", "cannot open the database"),
        ],
    )
    def test_says_in_words_that_it_cannot_start(self, tmp_path: Path, variable: str, value: str, words: str) -> None:
        with serving(tmp_path, **{f"EINSEARCH_{variable}": value}) as process:
            assert process.wait(60) == 1
            assert process.stderr is not None
            said = process.stderr.read()
        assert said.startswith(words)
        assert "secret" not in said
        assert "Traceback" not in said
