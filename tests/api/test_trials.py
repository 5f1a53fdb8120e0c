import pytest
from starlette.testclient import TestClient

from einlayers.theta import NAMED
from search.states import TrialState
from search.trial import Outcome
from tests.rows import TINY, Rows, point


def _ids(client: TestClient, path: str) -> list[str]:
    """The ids on all pages of a list, two a page."""
    found: list[str] = []
    token = ""
    while True:
        page = client.get(f"{path}{'&' if '?' in path else '?'}page_size=2{token}").json()
        found += [item["id"] for item in page["items"]]
        if page["next_page_token"] is None:
            return found
        token = f"&page_token={page['next_page_token']}"


class TestList:
    def test_is_in_order_of_the_number(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        rows.trial(rows.search(), NAMED["dense"])
        expected = rows.all_proposed(search_id, NAMED.values())
        assert _ids(client, f"/v1/searches/{search_id}/trials") == expected

    def test_holds_those_of_one_state_where_asked(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        thetas = list(NAMED.values())
        proposed = rows.all_proposed(search_id, thetas[:3])
        completed = rows.all_completed(search_id, [(theta, 1.0) for theta in thetas[3:]])
        path = f"/v1/searches/{search_id}/trials"
        assert _ids(client, f"{path}?state=PROPOSED") == proposed
        assert _ids(client, f"{path}?state=COMPLETED") == completed
        assert _ids(client, f"{path}?state=PRUNED") == []

    def test_stays_right_while_trials_arrive(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        thetas = list(NAMED.values())
        expected = rows.all_proposed(search_id, thetas[:2])
        path = f"/v1/searches/{search_id}/trials"
        first = client.get(f"{path}?page_size=1").json()
        expected.append(rows.trial(search_id, thetas[2]))
        second = client.get(f"{path}?page_size=5&page_token={first['next_page_token']}").json()
        assert [item["id"] for item in first["items"] + second["items"]] == expected

    def test_of_a_search_without_trials_is_empty(self, client: TestClient, rows: Rows) -> None:
        response = client.get(f"/v1/searches/{rows.search()}/trials")
        assert response.json() == {"items": [], "next_page_token": None}


class TestTrial:
    def test_shows_what_is_known_before_training(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        trial = client.get(f"/v1/trials/{rows.trial(search_id, NAMED['monarch'])}").json()
        assert (trial["search_id"], trial["number"], trial["replicate"]) == (search_id, 0, 0)
        assert (trial["state"], trial["family"]) == ("PROPOSED", "monarch")
        assert list(trial["theta"].values()) == list(NAMED["monarch"].exponents)
        assert (trial["omega"], trial["psi"], trial["nu"]) == (0.0, 1.0, 0.5)
        assert trial["train_flops"] == TINY.train_flops
        assert set(trial["dims"]) == {"attention", "up", "down"}
        assert trial["dims"]["up"]["d_out"] == 4 * trial["width"]
        assert (trial["loss"], trial["reason"], trial["attempts"], trial["finished_at"]) == (None, None, [], None)

    def test_counts_what_its_layers_hold(self, client: TestClient, rows: Rows) -> None:
        trial = client.get(f"/v1/trials/{rows.trial(rows.search(), NAMED['monarch'])}").json()
        width, layers = trial["width"], 0
        for name, count in (("attention", 4), ("up", 1), ("down", 1)):
            dims = trial["dims"][name]
            first = dims["phi"] * dims["delta"] * dims["rho"] * dims["gamma"] * dims["alpha"]
            second = dims["phi"] * dims["epsilon"] * dims["rho"] * dims["gamma"] * dims["beta"]
            layers += count * (first + second)
        tables = 2 * 96 * width + TINY.context * width
        assert trial["params"] == layers + tables + (2 * width + 2 * width) + width

    @pytest.mark.parametrize("state", [TrialState.COMPLETED, TrialState.INFEASIBLE, TrialState.FAILED])
    def test_shows_how_it_ended(self, state: TrialState, client: TestClient, rows: Rows) -> None:
        outcomes = {
            TrialState.COMPLETED: Outcome.completed(loss=1.25, seconds=2.5),
            TrialState.INFEASIBLE: Outcome.infeasible("it diverged", seconds=2.5),
            TrialState.FAILED: Outcome.failed("a traceback"),
        }
        trial_id = rows.trial(rows.search(), NAMED["btt"])
        rows.outcome(rows.attempt(trial_id, "slot 3"), outcomes[state])
        trial = client.get(f"/v1/trials/{trial_id}").json()
        assert (trial["state"], trial["loss"], trial["reason"]) == (state, outcomes[state].loss, outcomes[state].reason)
        assert trial["finished_at"].endswith("Z")
        (attempt,) = trial["attempts"]
        assert (attempt["number"], attempt["slot"], attempt["state"]) == (1, "slot 3", "ENDED")
        assert (attempt["seconds"], attempt["reason"]) == (outcomes[state].seconds, outcomes[state].reason)

    def test_shows_every_attempt(self, client: TestClient, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(), NAMED["btt"])
        lost = rows.attempt(trial_id, "slot 1")
        rows.loss(lost, "the node is gone")
        rows.attempt(trial_id, "slot 2")
        trial = client.get(f"/v1/trials/{trial_id}").json()
        assert trial["state"] == "RUNNING"
        assert [(attempt["number"], attempt["state"], attempt["reason"]) for attempt in trial["attempts"]] == [
            (1, "LOST", "the node is gone"),
            (2, "RUNNING", None),
        ]

    def test_is_the_same_in_every_list(self, client: TestClient, rows: Rows) -> None:
        search_id = rows.search()
        trial = client.get(f"/v1/trials/{rows.completed(search_id, NAMED['btt'], 1.0)}").json()
        assert client.get(f"/v1/searches/{search_id}/trials").json()["items"] == [trial]
        (structure,) = client.get("/v1/structures").json()["items"]
        assert structure.pop("proxy")["dense_width"] == TINY.dense_width
        assert structure == trial


class TestMeasurements:
    def test_are_the_learning_curve_of_the_latest_attempt(self, client: TestClient, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(), NAMED["btt"])
        path = f"/v1/trials/{trial_id}/measurements"
        assert client.get(path).json() == {"items": [], "next_page_token": None}
        lost = rows.attempt(trial_id)
        rows.progress(lost, point(1, 9.0))
        rows.loss(lost)
        rows.outcome(rows.attempt(trial_id), Outcome.completed(loss=2.0, curve=(point(2, 3.0), point(4, 2.0))))
        assert client.get(path).json() == {
            "items": [
                {"step": 2, "examples": 256, "train_flops": 2e5, "loss": 3.0},
                {"step": 4, "examples": 512, "train_flops": 4e5, "loss": 2.0},
            ],
            "next_page_token": None,
        }
