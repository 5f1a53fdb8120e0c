"""Searches that start from earlier ones, over HTTP."""

from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from einlayers.theta import NAMED
from search.spec import SearchSpec
from search.states import SearchState
from service.columns import AsJSON
from tests.api.problems import problem_of
from tests.rows import SPEC, Rows

_AS_JSON = AsJSON[SearchSpec](SearchSpec)


def _body(*source_ids: str) -> dict[str, object]:
    spec = replace(SPEC, warm_start=source_ids)
    found: dict[str, object] = _AS_JSON.process_bind_param(spec, None)  # type: ignore[arg-type]  # no dialect differs
    return found


@pytest.fixture
def source_id(rows: Rows) -> str:
    search_id = rows.search()
    rows.completed(search_id, NAMED["btt"], 1.5)
    return search_id


class TestWarmStart:
    def test_stands_in_the_answer_with_what_was_taken(self, client: TestClient, source_id: str) -> None:
        response = client.post("/v1/searches", json=_body(source_id))
        assert response.status_code == 201
        search = response.json()
        assert search["spec"]["warm_start"] == [source_id]
        taken = [{"source_id": source_id, "num_finished": 1, "num_results": 1, "num_in_space": 1}]
        assert search["warm_starts"] == taken
        assert client.get(f"/v1/searches/{search['id']}").json()["warm_starts"] == taken
        listed = client.get("/v1/searches").json()["items"]
        assert [each["warm_starts"] for each in listed] == [taken, []]

    def test_lends_results_to_what_is_enqueued(self, client: TestClient, source_id: str) -> None:
        search_id = client.post("/v1/searches", json=_body(source_id)).json()["id"]
        theta = dict(
            zip(("alpha", "beta", "gamma", "delta", "epsilon", "phi", "rho"), NAMED["btt"].exponents, strict=True)
        )
        trial = client.post(f"/v1/searches/{search_id}/trials", json={"theta": theta}).json()
        assert (trial["state"], trial["loss"], trial["reused_from"]) == ("COMPLETED", 1.5, f"{source_id}-0")
        assert (trial["train_flops"], trial["attempts"], trial["origin"]) == (0, [], "user")
        progress = client.get(f"/v1/searches/{search_id}").json()["progress"]
        assert (progress["num_reused"], progress["train_flops"], progress["max_trials"]) == (1, 0, 11)
        (best,) = client.get(f"/v1/searches/{search_id}/best").json()["items"]
        assert best["trial"]["reused_from"] == f"{source_id}-0"
        structures = client.get("/v1/structures").json()["items"]
        assert {each["proxy"]["train_flops"] for each in structures} == {SPEC.proxy.train_flops}
        exported = client.get(f"/v1/searches/{search_id}/export", params={"format": "csv"}).text.splitlines()
        columns = dict(zip(*(line.split(",") for line in exported), strict=True)) if len(exported) == 2 else {}
        assert columns.get("reused_from") == f"{source_id}-0"

    @pytest.mark.parametrize("path", ["/v1/searches", "/v1/searches:validate"])
    def test_is_refused_with_the_reason(self, client: TestClient, rows: Rows, path: str) -> None:
        other_id = rows.search(replace(SPEC, proxy=replace(SPEC.proxy, train_flops=2e6)), SearchState.COMPLETED)
        for source_id, told in (
            ("abc", "expected ids of earlier searches of this service, got 'abc'"),
            (
                other_id,
                f"searches on exactly this proxy; there train_flops is 2000000.0, here 1000000.0, got '{other_id}'",
            ),
            ("../x", "expected ids of searches, such as 5f0c2ab91d3e, got '../x'"),
        ):
            problem = problem_of(client.post(path, json={**_body(), "warm_start": [source_id]}), 422, "invalid_value")
            (error,) = problem.errors
            assert error.pointer == "/warm_start"
            assert error.detail.endswith(told)

    def test_is_validated_where_it_fits(self, client: TestClient, source_id: str) -> None:
        response = client.post("/v1/searches:validate", json=_body(source_id))
        assert (response.status_code, response.json()["max_trials"]) == (200, 10)
