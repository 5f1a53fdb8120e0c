from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from starlette.testclient import TestClient

from api.app import create_app
from service import leases
from service.database import Database
from service.migrate import configuration
from service.models import Runner, RunnerStats
from service.settings import Settings
from tests.api.local import LocalClient
from tests.api.problems import problem_of
from tests.databases import Server


class TestLiveness:
    def test_is_there_without_a_database(self, tmp_path: Path) -> None:
        with LocalClient(create_app(_settings_without_database(tmp_path))) as client:
            response = client.get("/healthz")
        assert response.status_code == 200
        assert response.json() == {"status": "ok", "checks": {}}


class TestReadiness:
    def test_is_there_with_a_current_schema_and_a_runner(self, client: TestClient, database: Database) -> None:
        _enrol(database)
        response = client.get("/readyz")
        assert response.status_code == 200
        assert response.json() == {"status": "ok", "checks": {"database": "ok", "runner": "ok", "ray": "ok"}}

    def test_is_missing_with_another_schema_and_says_what_to_do(self, server: Server, tmp_path: Path) -> None:
        with server.empty() as url, LocalClient(create_app(Settings(home=tmp_path, database_url=url))) as client:
            response = client.get("/readyz")
            assert response.status_code == 503
            assert response.json() == {
                "status": "unavailable",
                "checks": {
                    "database": "the schema is not current: run python -m service.migrate upgrade",
                    "runner": "unknown: only the database can tell",
                    "ray": "unknown: only the database can tell",
                },
            }

    def test_is_missing_without_a_database(self, tmp_path: Path) -> None:
        with LocalClient(create_app(_settings_without_database(tmp_path))) as client:
            response = client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["status"] == "unavailable"
        assert response.json()["checks"]["database"] == "does not answer"


class TestDegradation:
    """Requests are served, so that the answer is 200; what they ask for waits."""

    def test_is_told_where_no_runner_was_ever_seen(self, client: TestClient) -> None:
        checks = _degraded(client)
        assert checks["runner"].startswith("none is alive: searches wait; start python -m service.runner")
        assert checks["ray"] == "unknown: only a runner can tell"

    def test_says_since_when_no_runner_is_alive(self, client: TestClient, database: Database) -> None:
        runner = _enrol(database, lease_seconds=-1)
        since = f"{runner.seen_at:%Y-%m-%dT%H:%M:%S}+00:00"
        assert (
            f"none is alive since {since}, the last sign of life of runner {runner.id}:" in _degraded(client)["runner"]
        )

    def test_starts_when_a_runner_leaves(self, client: TestClient, database: Database) -> None:
        runner = _enrol(database)
        assert client.get("/readyz").json()["status"] == "ok"
        with database.write() as session:
            leases.leave(session, runner.id)
        assert runner.id in _degraded(client)["runner"]

    def test_says_whose_ray_is_in_trouble_and_since_when(self, client: TestClient, database: Database) -> None:
        since = datetime(2026, 11, 21, 12, 0, 3, tzinfo=UTC)
        healthy = _enrol(database)
        stats = RunnerStats().found_ray("no GPU is left", since).found_ray("no GPU is left", datetime.now(UTC))
        troubled = _enrol(database, stats=stats)
        checks = _degraded(client)
        assert checks["runner"] == "ok"
        assert checks["ray"].startswith(f"runner {troubled.id} says since 2026-11-21T12:00:03+00:00: no GPU is left; ")
        assert healthy.id not in checks["ray"]

    def test_ends_with_the_trouble(self, client: TestClient, database: Database) -> None:
        now = datetime.now(UTC)
        _enrol(database, stats=RunnerStats().found_ray("gone", now).found_ray("ok", now))
        assert client.get("/readyz").json()["status"] == "ok"


def _enrol(database: Database, lease_seconds: float = 60, stats: RunnerStats | None = None) -> Runner:
    with database.write() as session:
        runner = leases.enrol(session, lease_seconds)
        runner.stats = stats or RunnerStats()
        return runner


def _degraded(client: TestClient) -> dict[str, str]:
    """The checks of a service that is degraded."""
    response = client.get("/readyz")
    assert response.status_code == 200
    assert response.json()["status"] == "degraded"
    checks: dict[str, str] = response.json()["checks"]
    assert checks["database"] == "ok"
    return checks


class TestDatabaseOutage:
    def test_is_told_as_one_and_for_how_long_to_wait(self, tmp_path: Path) -> None:
        with LocalClient(create_app(_settings_without_database(tmp_path))) as client:
            for response in (
                client.get("/v1/searches"),
                client.post("/v1/searches", json={"name": "test", "budget": {"max_trials": 1}}),
            ):
                problem = problem_of(response, 503, "database_unavailable")
                assert "sqlite" not in problem.detail.lower()
                assert response.headers["retry-after"] == "5"

    def test_is_told_of_a_schema_that_is_not_there(self, server: Server, tmp_path: Path) -> None:
        with server.empty() as url, LocalClient(create_app(Settings(home=tmp_path, database_url=url))) as client:
            for path in ("/v1/searches", "/v1/structures", "/v1/trials/5f0c-7"):
                response = client.get(path)
                assert "not ready for this version" in problem_of(response, 503, "database_unavailable").detail
                assert response.headers["retry-after"] == "5"

    def test_is_told_of_an_old_schema(self, server: Server, tmp_path: Path) -> None:
        with server.empty() as url:
            command.upgrade(configuration(url), "0001")
            with LocalClient(create_app(Settings(home=tmp_path, database_url=url))) as client:
                problem_of(client.get("/v1/searches"), 503, "database_unavailable")

    def test_leaves_what_needs_no_database(self, tmp_path: Path) -> None:
        with LocalClient(create_app(_settings_without_database(tmp_path))) as client:
            response = client.post("/v1/searches:validate", json={"name": "test", "budget": {"max_trials": 1}})
        assert response.status_code == 200


def _settings_without_database(folder: Path) -> Settings:
    """A folder where the file of the database should be."""
    return Settings(home=folder, database_url=f"sqlite:///{folder}")
