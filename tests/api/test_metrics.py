from collections.abc import Mapping
from pathlib import Path

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from api.app import create_app
from einlayers.theta import NAMED
from service import leases
from service.database import Database
from service.models import LATENCY_BOUNDS, RunnerStats
from service.settings import Settings
from tests.api.local import LocalClient
from tests.databases import Server
from tests.rows import Rows

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def _scrape(client: TestClient) -> Samples:
    """Every sample that Prometheus would read, by its name and its labels."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def _value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"einsearch_{name}", tuple(sorted(labels.items()))]


class TestService:
    def test_is_all_zeros_at_first(self, client: TestClient) -> None:
        samples = _scrape(client)
        assert _value(samples, "database_up") == 1
        assert _value(samples, "searches", state="QUEUED") == 0
        assert _value(samples, "trials", state="INFEASIBLE") == 0
        for name in ("queue_depth", "running_attempts", "retries_total", "slots", "slots_busy", "runners"):
            assert _value(samples, name) == 0

    def test_is_as_it_is_in_the_database(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        rows.completed(search_id, NAMED["dense"], 1.0)
        rows.attempt(rows.trial(search_id, NAMED["btt"]))
        rows.trial(search_id, NAMED["monarch"])
        samples = _scrape(client)
        assert _value(samples, "searches", state="RUNNING") == 1
        for state in ("COMPLETED", "RUNNING", "PROPOSED"):
            assert _value(samples, "trials", state=state) == 1
        assert _value(samples, "queue_depth") == _value(samples, "running_attempts") == 1
        assert _value(samples, "runners") == 1

    def test_has_a_histogram_of_every_runner(self, client: TestClient, database: Database) -> None:
        stats = RunnerStats(slots=4, busy=3)
        for seconds in (0.001, 0.003, 0.2, 60.0):
            stats = RunnerStats(slots=4, busy=3, ask=stats.ask.observe(seconds))
        with database.write() as session:
            runner = leases.enrol(session, 60)
            runner.stats = stats
        samples = _scrape(client)
        assert (_value(samples, "slots"), _value(samples, "slots_busy")) == (4, 3)
        ask = {
            le: _value(samples, "ask_seconds_bucket", le=le, runner=runner.id)
            for le in ("0.001", "0.0025", "0.005", "0.1", "0.25", "10.0", "+Inf")
        }
        assert list(ask.values()) == [1, 1, 2, 2, 3, 3, 4]
        assert _value(samples, "ask_seconds_count", runner=runner.id) == 4
        assert _value(samples, "ask_seconds_sum", runner=runner.id) == pytest.approx(60.204)
        assert _value(samples, "record_seconds_bucket", le=str(LATENCY_BOUNDS[-1]), runner=runner.id) == 0


class TestProcess:
    def test_counts_requests_by_the_template_of_their_path(self, client: TestClient) -> None:
        for search_id in ("aaaa", "bbbb"):
            client.get(f"/v1/searches/{search_id}")
        client.get("/v1/searches")
        client.delete("/v1/searches")
        samples = _scrape(client)
        requests = {
            labels: value for (name, labels), value in samples.items() if name == "einsearch_http_requests_total"
        }
        assert requests == {
            (("method", "GET"), ("route", "/v1/searches/{search_id}"), ("status", "404")): 2,
            (("method", "GET"), ("route", "/v1/searches"), ("status", "200")): 1,
            (("method", "DELETE"), ("route", "/v1/searches"), ("status", "405")): 1,
        }
        count = _value(samples, "http_request_seconds_count", method="GET", route="/v1/searches/{search_id}")
        assert count == 2

    def test_has_no_series_for_what_anybody_makes_up(self, client: TestClient) -> None:
        for path in ("/one", "/two", "/docs/%0A"):
            client.get(path)
        client.request("BREW", "/three")
        samples = _scrape(client)
        assert _value(samples, "http_requests_total", method="GET", route="none", status="404") == 3
        assert _value(samples, "http_requests_total", method="other", route="none", status="404") == 1

    def test_counts_what_went_wrong(self, app: FastAPI) -> None:
        @app.get("/broken")
        def fail() -> None:
            raise RuntimeError

        with LocalClient(app, raise_server_exceptions=False) as client:
            client.get("/broken")
            assert _value(_scrape(client), "http_requests_total", method="GET", route="/broken", status="500") == 1

    def test_tells_of_its_memory(self, client: TestClient) -> None:
        assert _scrape(client)["process_resident_memory_bytes", ()] > 0


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """An application whose database cannot be opened: a folder is where its file should be."""
    return create_app(Settings(home=tmp_path, database_url=f"sqlite:///{tmp_path}"))


class TestDatabaseOutage:
    def test_leaves_what_the_process_knows(self, app: FastAPI) -> None:
        with LocalClient(app) as client:
            client.get("/healthz")
            self._shows_an_outage(_scrape(client))

    def test_is_also_a_schema_that_is_not_there(self, server: Server, tmp_path: Path) -> None:
        with (
            server.empty() as url,
            LocalClient(create_app(Settings(home=tmp_path, database_url=url))) as client,
        ):
            client.get("/healthz")
            self._shows_an_outage(_scrape(client))

    def _shows_an_outage(self, samples: Samples) -> None:
        assert _value(samples, "database_up") == 0
        assert _value(samples, "http_requests_total", method="GET", route="/healthz", status="200") == 1
        assert not any(name in ("einsearch_searches", "einsearch_runners") for name, _ in samples)


class TestTwoApplications:
    def test_count_for_themselves(self, app: FastAPI, client: TestClient) -> None:
        client.get("/healthz")
        with LocalClient(app) as other:
            assert ("einsearch_http_requests_total", ()) not in _scrape(other)
