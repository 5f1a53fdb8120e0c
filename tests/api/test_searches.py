import statistics
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.testclient import TestClient

from einlayers.theta import NAMED
from search.spec import SearchSpec
from search.states import SearchState
from search.structure import structure_of
from search.trial import Outcome
from service import repositories
from tests.api.problems import problem_of
from tests.bodies import EXAMPLE, MONARCH
from tests.rows import SPEC, TINY, Rows, contents

MINIMAL = {"name": "minimal", "budget": {"max_trials": 1}}

ALLOWED = {
    ("pause", "QUEUED"): "PAUSED",
    ("pause", "RUNNING"): "PAUSED",
    ("resume", "PAUSED"): "RUNNING",
    ("cancel", "QUEUED"): "STOPPING",
    ("cancel", "RUNNING"): "STOPPING",
    ("cancel", "PAUSED"): "STOPPING",
}

REFUSED = [
    (action, state)
    for action in ("pause", "resume", "cancel")
    for state in SearchState
    if (action, state) not in ALLOWED
]


def _but_for_the_clock(search: dict[str, Any]) -> dict[str, Any]:
    """A search without the seconds that it has run, which pass between two looks."""
    progress = {name: value for name, value in search["progress"].items() if name != "seconds"}
    return {**search, "progress": progress}


def _is_within(part: Any, whole: Any) -> bool:
    """Whether everything that ``part`` says, ``whole`` says too."""
    if isinstance(part, dict):
        return all(name in whole and _is_within(value, whole[name]) for name, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(_is_within, part, whole))
    return bool(part == whole)


class TestSubmit:
    def test_takes_the_example_of_the_design_as_it_stands(self, client: TestClient) -> None:
        response = client.post("/v1/searches", json=EXAMPLE)
        assert response.status_code == 201
        search = response.json()
        assert _is_within(EXAMPLE, search["spec"])
        assert (search["name"], search["state"]) == ("btt on text", "QUEUED")
        assert search["reason"] is None
        assert search["waiting_for"].startswith("no runner is alive")
        assert (search["owner"], search["runner_id"], search["last_event"]) == ("local", None, 1)
        assert search["progress"] == {
            "max_trials": 20,
            "finished": 0,
            "counts": {},
            "best_loss": None,
            "seconds": 0.0,
            "train_flops": 0.0,
            "num_retries": 0,
            "num_reused": 0,
        }

    def test_says_where_the_search_is(self, client: TestClient) -> None:
        response = client.post("/v1/searches", json=EXAMPLE)
        assert response.headers["location"] == f"/v1/searches/{response.json()['id']}"
        assert client.get(response.headers["location"]).json() == response.json()

    def test_fills_in_what_is_not_said(self, client: TestClient) -> None:
        spec = client.post("/v1/searches", json=MINIMAL).json()["spec"]
        assert spec["proxy"]["kind"] == "char_lm"
        assert spec["sampler"]["kind"] == "gp"
        assert (spec["replicates"], spec["concurrency"]) == (1, 2)

    def test_takes_the_spec_of_a_search_that_it_gave(self, client: TestClient) -> None:
        spec = client.post("/v1/searches", json=EXAMPLE).json()["spec"]
        assert client.post("/v1/searches", json=spec).json()["spec"] == spec

    def test_gives_times_in_utc(self, client: TestClient) -> None:
        before = datetime.now(UTC)
        search = client.post("/v1/searches", json=MINIMAL).json()
        assert search["created_at"].endswith("Z")
        assert before <= datetime.fromisoformat(search["created_at"]) <= datetime.now(UTC)
        assert (search["started_at"], search["finished_at"]) == (None, None)

    @pytest.mark.parametrize("name", ["btt für Text", "文字", "x" * 200, "'; DROP TABLE searches; --", "%s {} \\"])
    def test_keeps_a_name_as_it_is(self, name: str, client: TestClient) -> None:
        identifier = client.post("/v1/searches", json={**MINIMAL, "name": name}).json()["id"]
        assert client.get(f"/v1/searches/{identifier}").json()["name"] == name

    @pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**63 - 1])
    def test_keeps_a_large_seed_exactly(self, seed: int, client: TestClient) -> None:
        body = {**MINIMAL, "sampler": {"kind": "random", "seed": seed}}
        identifier = client.post("/v1/searches", json=body).json()["id"]
        assert client.get(f"/v1/searches/{identifier}").json()["spec"]["sampler"]["seed"] == seed

    def test_takes_a_corpus_that_the_operator_allows(self, client: TestClient) -> None:
        body = {**MINIMAL, "proxy": {"corpus": {"kind": "file", "path": "corpus.txt"}}}
        response = client.post("/v1/searches", json=body)
        assert response.status_code == 201
        assert response.json()["spec"]["proxy"]["corpus"] == {"kind": "file", "path": "corpus.txt"}


class TestValidate:
    def test_estimates_the_example_and_writes_nothing(self, client: TestClient, rows: Rows) -> None:
        response = client.post("/v1/searches:validate", json=EXAMPLE)
        assert response.status_code == 200
        estimate = response.json()
        assert (estimate["train_flops"], estimate["max_trials"]) == (2e12, 20)
        assert estimate["baseline"]["width"] == 32
        assert [seed["family"] for seed in estimate["seeds"]] == ["dense", "monarch", "low-rank"]
        assert estimate["seeds"][0] == estimate["baseline"]
        assert contents(rows.database)["searches"] == []

    def test_gives_the_seeds_the_cost_of_the_baseline(self, client: TestClient) -> None:
        estimate = client.post("/v1/searches:validate", json=EXAMPLE).json()
        dense = estimate["baseline"]["cost"]["macs"]
        assert all(abs(seed["cost"]["macs"] / dense - 1) < 0.15 for seed in estimate["seeds"])


class TestPlan:
    RUNS = (
        {"theta": MONARCH},
        {"theta": MONARCH, "width": 16, "train_flops": 4e6},
        {"theta": MONARCH, "base_lr": 0.25},
    )

    def _body(self, *runs: object, **fields: object) -> dict[str, object]:
        proxy = {"dense_width": 8, "train_flops": 1e6}
        return {
            **MINIMAL,
            "budget": {"max_trials": 9},
            "proxy": proxy,
            "sampler": {"kind": "plan", "runs": runs},
            **fields,
        }

    def test_is_estimated_by_its_runs(self, client: TestClient) -> None:
        estimate = client.post("/v1/searches:validate", json=self._body(*self.RUNS)).json()
        assert (estimate["max_trials"], estimate["train_flops"]) == (3, 6e6)

    def test_is_shown_as_it_was_sent(self, client: TestClient) -> None:
        search = client.post("/v1/searches", json=self._body(*self.RUNS)).json()
        assert _is_within(list(self.RUNS), search["spec"]["sampler"]["runs"])
        assert search["progress"]["max_trials"] == 3

    def test_takes_no_trial_that_it_does_not_list(self, client: TestClient) -> None:
        search_id = client.post("/v1/searches", json=self._body(*self.RUNS)).json()["id"]
        refused = client.post(f"/v1/searches/{search_id}/trials", json={"theta": MONARCH})
        assert (refused.status_code, "its plan" in refused.json()["detail"]) == (409, True)

    def test_is_not_given_a_budget_of_compute_later_on(self, client: TestClient, rows: Rows) -> None:
        search_id = client.post("/v1/searches", json=self._body(*self.RUNS)).json()["id"]
        before = contents(rows.database)
        problem = problem_of(client.patch(f"/v1/searches/{search_id}", json={"budget": {"max_train_flops": 1e9}}), 422)
        assert [error.pointer for error in problem.errors] == ["/budget"]
        assert contents(rows.database) == before
        assert client.patch(f"/v1/searches/{search_id}", json={"budget": {"max_trials": 2}}).status_code == 200

    @pytest.mark.parametrize(
        ("runs", "fields", "pointer"),
        [
            ([], {}, "/sampler/runs"),
            ([{"theta": MONARCH, "width": 13}], {}, "/sampler"),
            ([{"theta": MONARCH, "lr": 1}], {}, "/sampler/runs/0/lr"),
            ([{"theta": MONARCH}], {"replicates": 2}, "/replicates"),
            ([{"theta": MONARCH}], {"budget": {"max_train_flops": 1e9}}, "/budget"),
        ],
    )
    def test_that_cannot_be_trained_is_refused_with_its_place(
        self, client: TestClient, runs: list[object], fields: dict[str, object], pointer: str
    ) -> None:
        problem = problem_of(client.post("/v1/searches", json=self._body(*runs, **fields)), 422)
        assert [error.pointer for error in problem.errors] == [pointer]


class TestList:
    def test_is_newest_first_and_complete(self, client: TestClient, rows: Rows) -> None:
        expected = [rows.search() for _ in range(7)][::-1]
        for size in (1, 2, 7, 500):
            assert _all_ids(client, "/v1/searches", size) == expected

    def test_stays_right_while_searches_arrive(self, client: TestClient, rows: Rows) -> None:
        expected = [rows.search() for _ in range(5)][::-1]
        assert _all_ids(client, "/v1/searches", 2, between=rows.search) == expected

    def test_shows_what_one_search_shows(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        rows.completed(search_id, NAMED["btt"], 1.5)
        rows.attempt(rows.trial(search_id, NAMED["dense"]))
        (listed,) = client.get("/v1/searches").json()["items"]
        shown = client.get(f"/v1/searches/{search_id}").json()
        assert _but_for_the_clock(listed) == _but_for_the_clock(shown)
        assert 0 <= listed["progress"]["seconds"] <= shown["progress"]["seconds"]
        assert _but_for_the_clock(listed)["progress"] == {
            "max_trials": 10,
            "finished": 1,
            "counts": {"COMPLETED": 1, "RUNNING": 1},
            "best_loss": 1.5,
            "train_flops": 2 * TINY.train_flops,
            "num_retries": 0,
            "num_reused": 0,
        }

    def test_of_no_search_is_empty(self, client: TestClient) -> None:
        assert client.get("/v1/searches").json() == {"items": [], "next_page_token": None}


def _all_ids(
    client: TestClient, path: str, size: int, between: Callable[[], object] = lambda: None, **parameters: Any
) -> list[str]:
    """The ids on all pages of a list."""
    found: list[str] = []
    query = {**parameters, "page_size": size}
    while True:
        page = client.get(path, params=query).json()
        assert 0 < len(page["items"]) <= size
        found += [item["id"] for item in page["items"]]
        if page["next_page_token"] is None:
            return found
        query["page_token"] = page["next_page_token"]
        between()


class TestActions:
    @pytest.mark.parametrize(("action", "state"), ALLOWED, ids=str)
    def test_that_are_allowed_answer_the_search_as_it_is_then(
        self, action: str, state: str, client: TestClient, rows: Rows
    ) -> None:
        search_id = rows.search(state=SearchState(state))
        response = client.post(f"/v1/searches/{search_id}:{action}")
        assert response.status_code == 200
        assert response.json()["state"] == ALLOWED[action, state]
        assert response.json()["reason"] == (None if action == "resume" else "USER")
        shown = client.get(f"/v1/searches/{search_id}").json()
        assert _but_for_the_clock(shown) == _but_for_the_clock(response.json())

    @pytest.mark.parametrize(("action", "state"), REFUSED, ids=str)
    def test_that_are_refused_change_nothing(
        self, action: str, state: SearchState, client: TestClient, rows: Rows
    ) -> None:
        search_id = rows.search(state=state)
        before = contents(rows.database)
        problem = problem_of(client.post(f"/v1/searches/{search_id}:{action}"), 409, "wrong_state")
        assert search_id in problem.detail
        assert state in problem.detail
        assert contents(rows.database) == before

    def test_of_a_search_that_was_cancelled_twice_are_refused(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        assert client.post(f"/v1/searches/{search_id}:cancel").status_code == 200
        problem_of(client.post(f"/v1/searches/{search_id}:cancel"), 409, "wrong_state")


class TestBest:
    def test_ranks_structures_with_mean_spread_and_seeds(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search(replace(SPEC, replicates=3))
        losses = {"dense": (2.0, 1.0, 1.75), "btt": (1.25, 1.25, 1.0)}
        for name, values in losses.items():
            for replicate, loss in enumerate(values):
                rows.completed(search_id, NAMED[name], loss, replicate)
        first, second = client.get(f"/v1/searches/{search_id}/best").json()["items"]
        assert (first["rank"], second["rank"]) == (1, 2)
        for ranked, name in ((first, "btt"), (second, "dense")):
            assert ranked["loss"] == pytest.approx(statistics.mean(losses[name]), rel=1e-15)
            assert ranked["loss_sd"] == pytest.approx(statistics.stdev(losses[name]), rel=1e-15)
            assert [replicate["loss"] for replicate in ranked["replicates"]] == list(losses[name])
            for replicate in ranked["replicates"]:
                trial = client.get(f"/v1/trials/{replicate['trial_id']}").json()
                assert (trial["seed"], trial["loss"]) == (replicate["seed"], replicate["loss"])
            assert ranked["trial"] == client.get(f"/v1/trials/{ranked['replicates'][0]['trial_id']}").json()
            assert ranked["trial"]["family"] == name

    def test_of_one_replicate_has_no_spread(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        rows.completed(search_id, NAMED["btt"], 1.0)
        (ranked,) = client.get(f"/v1/searches/{search_id}/best").json()["items"]
        assert ranked["loss_sd"] is None

    def test_is_no_longer_than_asked_for(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        rows.all_completed(search_id, [(theta, 1.0) for theta in NAMED.values()])
        assert len(client.get(f"/v1/searches/{search_id}/best").json()["items"]) == len(NAMED)
        assert len(client.get(f"/v1/searches/{search_id}/best?limit=2").json()["items"]) == 2

    def test_of_a_search_without_a_loss_is_empty(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["btt"])), Outcome.infeasible("it diverged"))
        assert client.get(f"/v1/searches/{search_id}/best").json() == {"items": [], "confidence": None}


class TestStored:
    def test_is_what_was_asked_for(self, client: TestClient, rows: Rows) -> None:
        identifier = client.post("/v1/searches", json=EXAMPLE).json()["id"]
        with rows.database.read() as session:
            spec = repositories.search_by_id(session, identifier).spec
        assert isinstance(spec, SearchSpec)
        assert spec.space.seeds == ("dense", "monarch", "low-rank")
        assert structure_of(NAMED["dense"], spec.proxy).width == 32
