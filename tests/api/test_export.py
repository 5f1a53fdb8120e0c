import json
import sys

import pytest
from starlette.testclient import TestClient

from einlayers.theta import NAMED
from tests.api.problems import problem_of
from tests.rows import Rows


class TestExport:
    @pytest.mark.parametrize(
        ("query", "media_type", "extension"),
        [
            ("", "text/csv; charset=utf-8; header=present", "csv"),
            ("?format=csv", "text/csv; charset=utf-8; header=present", "csv"),
            ("?format=jsonl", "application/jsonl", "jsonl"),
            ("?format=parquet", "application/vnd.apache.parquet", "parquet"),
        ],
    )
    def test_is_a_file(self, query: str, media_type: str, extension: str, client: TestClient, rows: Rows) -> None:
        if extension == "parquet":
            pytest.importorskip("pyarrow")
        search_id = rows.search()
        response = client.get(f"/v1/searches/{search_id}/export{query}")
        assert response.status_code == 200
        assert response.headers["Content-Type"] == media_type
        assert response.headers["Content-Disposition"] == f'attachment; filename="search-{search_id}.{extension}"'

    def test_holds_the_trials_of_the_search(self, client: TestClient, rows: Rows) -> None:
        rows.trial(rows.search(), NAMED["dense"])
        search_id = rows.search()
        expected = rows.all_proposed(search_id, NAMED.values())
        lines = client.get(f"/v1/searches/{search_id}/export?format=jsonl").text.splitlines()
        assert [json.loads(line)["id"] for line in lines] == expected

    def test_says_of_a_trial_what_the_api_says(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        trial = client.get(f"/v1/trials/{rows.completed(search_id, NAMED['btt'], 1.0)}").json()
        line = json.loads(client.get(f"/v1/searches/{search_id}/export?format=jsonl").text)
        same = line.keys() & trial.keys()
        assert {"id", "theta", "created_at", "loss", "state", "omega", "seed"} <= same
        assert {name: line[name] for name in same} == {name: trial[name] for name in same}

    @pytest.mark.parametrize("format", ["xlsx", "", "CSV"])
    def test_refuses_other_formats(self, format: str, client: TestClient, rows: Rows) -> None:
        problem_of(client.get(f"/v1/searches/{rows.search()}/export?format={format}"), 422, "invalid_value")

    @pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
    def test_refuses_a_search_that_is_not_there(self, format: str, client: TestClient) -> None:
        problem_of(client.get(f"/v1/searches/0/export?format={format}"), 404, "not_found")

    def test_says_how_to_install_what_is_missing(
        self, client: TestClient, rows: Rows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        response = client.get(f"/v1/searches/{rows.search()}/export?format=parquet")
        assert "einsearch[parquet]" in problem_of(response, 422, "parquet_missing").detail

    def test_is_documented_with_its_formats(self, client: TestClient) -> None:
        answers = client.get("/openapi.json").json()["paths"]["/v1/searches/{search_id}/export"]["get"]["responses"]
        assert set(answers["200"]["content"]) == {"text/csv", "application/jsonl", "application/vnd.apache.parquet"}
        assert {"404", "422"} <= set(answers)
