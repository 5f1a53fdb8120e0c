import math
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from einlayers.theta import NAMED
from search.racing import Racing
from tests.api.problems import problem_of
from tests.rows import SPEC, Rows


@pytest.fixture
def search_id(rows: Rows) -> str:
    """A search with a structure of two trials, 0 and 1, one of one, and one whose trial waits."""
    found = rows.search()
    for number, loss in enumerate((1.0, 1.02)):
        rows.completed(found, NAMED["btt"], loss, number)
    rows.completed(found, NAMED["dense"], 1.06)
    rows.trial(found, NAMED["monarch"])
    return found


class TestComparison:
    def test_gives_probability_difference_and_what_it_rests_on(self, client: TestClient, search_id: str) -> None:
        asked = {"a": f"{search_id}-1", "b": f"{search_id}-2"}
        found = client.get(f"/v1/searches/{search_id}/comparison", params=asked).json()
        assert found["a"] == {"trial_id": asked["a"], "num_trials": 2, "loss": pytest.approx(1.01)}
        assert found["b"] == {"trial_id": asked["b"], "num_trials": 1, "loss": 1.06}
        assert found["scale"] == "log"
        assert 0.01 < found["noise_sd"] < 0.02
        assert 0.9 < found["probability"] < 1
        difference = found["difference"]
        assert difference["value"] == pytest.approx(math.log(1.01 / 1.06))
        assert difference["low"] < difference["value"] < difference["high"]
        turned = client.get(f"/v1/searches/{search_id}/comparison", params={"a": asked["b"], "b": asked["a"]}).json()
        assert turned["probability"] == pytest.approx(1 - found["probability"])

    def test_is_empty_where_the_noise_is_unknown(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        rows.all_completed(search_id, [(NAMED["btt"], 1.0), (NAMED["dense"], 2.0)])
        asked = {"a": f"{search_id}-0", "b": f"{search_id}-1"}
        found = client.get(f"/v1/searches/{search_id}/comparison", params=asked).json()
        assert {name: found[name] for name in ("probability", "difference", "noise_sd", "scale")} == dict.fromkeys(
            ("probability", "difference", "noise_sd", "scale")
        )

    @pytest.mark.parametrize("b", ["7", "3"])
    def test_with_what_has_no_loss_is_refused(self, client: TestClient, search_id: str, b: str) -> None:
        asked = {"a": f"{search_id}-0", "b": f"{search_id}-{b}"}
        response = client.get(f"/v1/searches/{search_id}/comparison", params=asked)
        assert asked["b"] in problem_of(response, 404, "not_found").detail

    def test_of_a_structure_with_itself_is_refused(self, client: TestClient, search_id: str) -> None:
        asked = {"a": f"{search_id}-0", "b": f"{search_id}-1"}
        problem = problem_of(client.get(f"/v1/searches/{search_id}/comparison", params=asked), 422, "invalid_value")
        assert [error.pointer for error in problem.errors] == ["?b"]

    @pytest.mark.parametrize("value", ["", "ff", "FF-1", "ff-1-1", "\0", "f" * 40 + "-12345678"])
    def test_needs_ids_of_trials(self, client: TestClient, search_id: str, value: str) -> None:
        path = f"/v1/searches/{search_id}/comparison"
        for asked, missing in (({"a": value, "b": "ff-1"}, "?a"), ({"a": "ff-1", "b": value}, "?b")):
            problem = problem_of(client.get(path, params=asked), 422, "invalid_value")
            assert [error.pointer for error in problem.errors] == [missing]
        problem = problem_of(client.get(path), 422, "invalid_value")
        assert [error.pointer for error in problem.errors] == ["?a", "?b"]


class TestBest:
    def test_tells_how_sure_each_place_is(self, client: TestClient, search_id: str) -> None:
        best = client.get(f"/v1/searches/{search_id}/best").json()
        first, last = best["items"]
        asked = {"a": first["trial"]["id"], "b": last["trial"]["id"]}
        compared = client.get(f"/v1/searches/{search_id}/comparison", params=asked).json()
        assert first["better_than_next"] == compared["probability"]
        assert last["better_than_next"] is None
        assert best["confidence"] == pytest.approx(compared["probability"], abs=0.01)
        front = client.get(f"/v1/searches/{search_id}/pareto").json()["items"]
        assert {item["better_than_next"] for item in front} == {None}

    def test_tells_nothing_where_the_noise_is_unknown(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        rows.all_completed(search_id, [(NAMED["btt"], 1.0), (NAMED["dense"], 2.0)])
        best = client.get(f"/v1/searches/{search_id}/best").json()
        assert ([item["better_than_next"] for item in best["items"]], best["confidence"]) == ([None, None], None)

    def test_of_a_race_puts_single_seeds_last(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search(replace(SPEC, racing=Racing()))
        rows.completed(search_id, NAMED["dense"], 0.5)
        for replicate in range(2):
            rows.completed(search_id, NAMED["btt"], 1.0, replicate)
        best = client.get(f"/v1/searches/{search_id}/best").json()
        assert [item["trial"]["family"] for item in best["items"]] == ["btt", "dense"]
        assert best["items"][0]["better_than_next"] < 0.01
        assert best["confidence"] < 0.01


class TestRacing:
    def test_is_shown_as_it_was_asked_for(self, client: TestClient) -> None:
        body = {"name": "r", "budget": {"max_trials": 9}, "racing": {"max_replicates": 4}}
        search = client.post("/v1/searches", json=body).json()
        assert search["spec"]["racing"] == {"max_replicates": 4, "confidence": 0.8, "sd": None}

    @pytest.mark.parametrize(
        ("fields", "pointer"),
        [
            ({"replicates": 3, "racing": {}}, "/racing"),
            ({"objectives": [{"metric": "loss"}, {"metric": "macs"}], "racing": {}}, "/racing"),
        ],
    )
    def test_that_cannot_be_is_refused_with_its_place(
        self, client: TestClient, fields: dict[str, object], pointer: str
    ) -> None:
        body = {"name": "r", "budget": {"max_trials": 9}, **fields}
        problem = problem_of(client.post("/v1/searches", json=body), 422)
        assert [error.pointer for error in problem.errors] == [pointer]
