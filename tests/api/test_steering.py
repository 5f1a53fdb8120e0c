"""What steers a search over HTTP beyond its start: budgets, pauses, trials of one's own, exclusions, fronts."""

from dataclasses import replace
from math import log

import pytest
from starlette.testclient import TestClient

from einlayers.theta import NAMED
from search.spec import Budget
from search.states import SearchState
from service import repositories
from tests.api.problems import problem_of
from tests.bodies import MONARCH
from tests.rows import SPEC, TINY, Rows, contents


class TestBudget:
    def test_is_changed_while_the_search_runs(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        answer = client.patch(f"/v1/searches/{search_id}", json={"budget": {"max_trials": 12, "max_seconds": 60}})
        assert answer.status_code == 200
        assert answer.json()["progress"]["max_trials"] == 12
        assert client.get(f"/v1/searches/{search_id}").json()["spec"]["budget"] == {
            "max_trials": 12,
            "max_seconds": 60,
            "max_train_flops": None,
            "max_failures": 10,
        }

    def test_of_time_alone_counts_no_trials(self, client: TestClient) -> None:
        answer = client.post("/v1/searches", json={"name": "an hour", "budget": {"max_seconds": 3600}})
        assert answer.status_code == 201
        assert answer.json()["progress"]["max_trials"] is None

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"budget": {"max_trials": 0}}, "/budget/max_trials"),
            ({"budget": {}}, "/budget/max_trials"),
            ({"budget": {"max_trials": 1}}, "/budget/max_trials"),
            ({"budgets": {"max_trials": 9}}, "/budget"),
            ({"budget": {"max_trials": 9, "hours": 1}}, "/budget/hours"),
        ],
    )
    def test_that_cannot_be_is_refused_and_changes_nothing(
        self, body: object, pointer: str, client: TestClient, rows: Rows
    ) -> None:
        search_id = rows.search()
        rows.all_proposed(search_id, [NAMED["btt"], NAMED["dense"]])
        before = contents(rows.database)
        answer = client.patch(f"/v1/searches/{search_id}", json=body)
        problem = problem_of(answer, 422, "invalid_value")
        assert pointer in [error.pointer for error in problem.errors]
        assert contents(rows.database) == before

    def test_that_pays_for_no_trial_is_refused(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search(replace(SPEC, proxy=replace(TINY, train_flops=1e9)))
        answer = client.patch(f"/v1/searches/{search_id}", json={"budget": {"max_train_flops": 1e8}})
        assert [error.pointer for error in problem_of(answer, 422, "invalid_value").errors] == ["/budget"]

    def test_of_a_search_that_has_ended_is_refused(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search(state=SearchState.COMPLETED)
        problem_of(client.patch(f"/v1/searches/{search_id}", json={"budget": {"max_trials": 90}}), 409, "wrong_state")


class TestPause:
    @pytest.mark.parametrize("mode", ["drain", "checkpoint"])
    def test_says_what_becomes_of_trials_that_run(self, mode: str, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        paused = client.post(f"/v1/searches/{search_id}:pause?mode={mode}").json()
        assert (paused["state"], paused["reason"], paused["pause_mode"]) == ("PAUSED", "USER", mode)
        resumed = client.post(f"/v1/searches/{search_id}:resume").json()
        assert (resumed["state"], resumed["reason"], resumed["pause_mode"]) == ("RUNNING", None, None)
        assert resumed["state_since"] >= paused["state_since"]

    def test_in_another_mode_is_refused(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        problem_of(client.post(f"/v1/searches/{search_id}:pause?mode=hard"), 422, "invalid_value")


class TestUsersTrial:
    def test_is_added_where_the_answer_says(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        answer = client.post(f"/v1/searches/{search_id}/trials", json={"theta": MONARCH})
        trial = answer.json()
        assert answer.status_code == 201
        assert (trial["number"], trial["origin"], trial["state"], trial["family"]) == (0, "user", "PROPOSED", "monarch")
        assert client.get(answer.headers["Location"]).json() == trial

    def test_beyond_the_budget_is_refused(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search(SPEC.__class__(name="one", budget=Budget(max_trials=1), proxy=SPEC.proxy))
        rows.trial(search_id, NAMED["btt"])
        before = contents(rows.database)
        answer = client.post(f"/v1/searches/{search_id}/trials", json={"theta": MONARCH})
        assert f"PATCH /v1/searches/{search_id}" in problem_of(answer, 409, "budget_exhausted").detail
        assert contents(rows.database) == before

    def test_that_is_no_theta_is_refused(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        answer = client.post(f"/v1/searches/{search_id}/trials", json={"theta": {**MONARCH, "alpha": 0.9}})
        problem_of(answer, 422, "invalid_value")


class TestExclusion:
    def test_takes_a_trial_out_of_the_answers_and_keeps_it(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        best = rows.completed(search_id, NAMED["btt"], 1.0)
        other = rows.completed(search_id, NAMED["dense"], 2.0)
        excluded = client.post(f"/v1/trials/{best}:exclude", json={"reason": "a broken fan"}).json()
        assert (excluded["state"], excluded["loss"], excluded["excluded_reason"]) == ("COMPLETED", 1.0, "a broken fan")
        for path in (f"/v1/searches/{search_id}/best", f"/v1/searches/{search_id}/pareto"):
            assert [item["trial"]["id"] for item in client.get(path).json()["items"]] == [other]
        assert [trial["id"] for trial in client.get("/v1/structures").json()["items"]] == [other]
        assert client.get(f"/v1/searches/{search_id}").json()["progress"]["best_loss"] == 2.0
        client.post(f"/v1/trials/{best}:include")
        assert client.get(f"/v1/searches/{search_id}/best").json()["items"][0]["trial"]["id"] == best
        with rows.database.read() as session:
            assert [past.excluded for _, past in repositories.history(session, search_id)] == [False, False]

    def test_needs_a_reason(self, client: TestClient, rows: Rows) -> None:
        trial_id = rows.completed(rows.search(), NAMED["btt"], 1.0)
        for body in ({}, {"reason": ""}, {"reason": "x" * 1001}, {"reason": "a\0b"}):
            problem_of(client.post(f"/v1/trials/{trial_id}:exclude", json=body), 422, "invalid_value")

    def test_of_a_trial_that_waits_is_refused(self, client: TestClient, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(), NAMED["btt"])
        problem_of(client.post(f"/v1/trials/{trial_id}:exclude", json={"reason": "why"}), 409, "wrong_state")


class TestHypervolume:
    def test_grows_with_the_trials_of_a_search(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        first, second = (rows.completed(search_id, NAMED[name], loss) for name, loss in (("btt", 2.0), ("dense", 1.0)))
        trials = [client.get(f"/v1/trials/{trial_id}").json() for trial_id in (first, second)]
        parameters = {"metrics": "loss,params", "reference": "4,1e6"}
        found = client.get(f"/v1/searches/{search_id}/hypervolume", params=parameters).json()
        assert found["reference"] == {"loss": 4.0, "params": 1e6}
        assert [(p["number"], p["finished_at"], p["train_flops"]) for p in found["points"]] == [
            (number, trial["finished_at"], (number + 1) * TINY.train_flops) for number, trial in enumerate(trials)
        ]
        assert found["points"][0]["hypervolume"] == pytest.approx(log(2) * log(1e6 / trials[0]["params"]))
        assert found["points"][1]["hypervolume"] > found["points"][0]["hypervolume"]

    def test_says_the_reference_that_it_chose(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        assert client.get(f"/v1/searches/{search_id}/hypervolume").json() == {"reference": None, "points": []}
        rows.completed(search_id, NAMED["btt"], 2.0)
        found = client.get(f"/v1/searches/{search_id}/hypervolume").json()
        assert found["reference"].keys() == {"loss", "macs"}
        assert found["reference"]["loss"] == pytest.approx(2.2)
        assert found["points"][0]["hypervolume"] == pytest.approx(log(1.1) ** 2)

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            *(("metrics", value) for value in ("", "loss", "loss,psi", "loss,loss", "loss,macs:max", "a" * 201)),
            *(("reference", value) for value in ("", "1", "1,2,3", "1,0", "nan,1", "1,\0", "1" * 201)),
        ],
    )
    def test_of_anything_else_is_refused(self, parameter: str, value: str, client: TestClient, rows: Rows) -> None:
        answer = client.get(f"/v1/searches/{rows.search()}/hypervolume", params={parameter: value})
        (error,) = problem_of(answer, 422, "invalid_value").errors
        assert error.pointer == f"?{parameter}"


class TestPareto:
    def test_holds_what_no_other_structure_beats(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        losses = {"dense": 1.0, "btt": 1.5, "monarch": 1.2, "low-rank": 3.0}
        for name, loss in losses.items():
            rows.completed(search_id, NAMED[name], loss)
        trials = {trial["id"]: trial for trial in client.get(f"/v1/searches/{search_id}/trials").json()["items"]}
        expected = {
            trial["id"]
            for trial in trials.values()
            if not any(
                other["loss"] <= trial["loss"]
                and other["params"] <= trial["params"]
                and (other["loss"], other["params"]) != (trial["loss"], trial["params"])
                for other in trials.values()
            )
        }
        front = client.get(f"/v1/searches/{search_id}/pareto?metrics=loss,params").json()["items"]
        assert {item["trial"]["id"] for item in front} == expected
        assert [item["loss"] for item in front] == sorted(item["loss"] for item in front)

    @pytest.mark.parametrize("metrics", ["", "loss", "loss,loss", "loss,speed", "loss,macs:up", "a" * 201])
    def test_over_other_metrics_is_refused(self, metrics: str, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        answer = client.get(f"/v1/searches/{search_id}/pareto", params={"metrics": metrics})
        problem_of(answer, 422, "invalid_value")
