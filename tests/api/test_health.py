from pathlib import Path

from starlette.testclient import TestClient

from api.app import create_app
from service.settings import Settings
from tests.api.problems import problem_of
from tests.databases import Server


class TestLiveness:
    def test_is_there_without_a_database(self, tmp_path: Path) -> None:
        with TestClient(create_app(_settings_without_database(tmp_path))) as client:
            response = client.get("/healthz")
        assert response.status_code == 200
        assert response.json() == {"status": "ok", "checks": {}}


class TestReadiness:
    def test_is_there_with_a_current_schema(self, client: TestClient) -> None:
        response = client.get("/readyz")
        assert response.status_code == 200
        assert response.json() == {"status": "ok", "checks": {"database": "ok"}}

    def test_is_missing_with_another_schema_and_says_what_to_do(self, server: Server, tmp_path: Path) -> None:
        with server.empty() as url, TestClient(create_app(Settings(home=tmp_path, database_url=url))) as client:
            response = client.get("/readyz")
            assert response.status_code == 503
            assert response.json() == {
                "status": "unavailable",
                "checks": {"database": "the schema is not current: run python -m service.migrate upgrade"},
            }

    def test_is_missing_without_a_database(self, tmp_path: Path) -> None:
        with TestClient(create_app(_settings_without_database(tmp_path))) as client:
            response = client.get("/readyz")
        assert response.status_code == 503
        assert response.json() == {"status": "unavailable", "checks": {"database": "does not answer"}}


class TestDatabaseOutage:
    def test_is_told_as_one_and_for_how_long_to_wait(self, tmp_path: Path) -> None:
        with TestClient(create_app(_settings_without_database(tmp_path))) as client:
            for response in (
                client.get("/v1/searches"),
                client.post("/v1/searches", json={"name": "test", "budget": {"max_trials": 1}}),
            ):
                problem = problem_of(response, 503, "database_unavailable")
                assert "sqlite" not in problem.detail.lower()
                assert response.headers["retry-after"] == "5"

    def test_leaves_what_needs_no_database(self, tmp_path: Path) -> None:
        with TestClient(create_app(_settings_without_database(tmp_path))) as client:
            response = client.post("/v1/searches:validate", json={"name": "test", "budget": {"max_trials": 1}})
        assert response.status_code == 200


def _settings_without_database(folder: Path) -> Settings:
    """A folder where the file of the database should be."""
    return Settings(home=folder, database_url=f"sqlite:///{folder}")
