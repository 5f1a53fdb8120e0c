"""Studies over REST: each kind in its place; and what they say about searches and structures."""

from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console
from starlette.testclient import TestClient

from api.app import create_app
from einsearch.studying import show_study
from search.analysis import scaling
from service.analyst import Analyst
from service.database import Database
from service.settings import Settings
from tests.api.local import LocalClient
from tests.api.problems import problem_of
from tests.bodies import MONARCH
from tests.service.running import run
from workers.pool import LocalPool
from workers.workspace import Workspace

DENSE = {**dict.fromkeys(MONARCH, 0), "gamma": 1, "phi": 1}
KRONECKER = {**dict.fromkeys(MONARCH, 0), "alpha": 0.5, "beta": 0.5, "delta": 0.5, "epsilon": 0.5}
PROXY = {
    **{"kind": "char_lm", "dense_width": 8, "num_heads": 1, "depth": 1, "context": 16, "batch_size": 8},
    **{"train_flops": 1e6, "base_lr": 0.005, "corpus": {"kind": "file", "path": "corpus.txt"}},
}
QUICK: dict[str, dict[str, Any]] = {
    "baselines": {"width_factors": [1, 2], "replicates": 2},
    "calibrations": {"learning_rates": [0.001, 0.005], "replicates": 1},
    "fidelity-studies": {"structures": [DENSE, MONARCH, KRONECKER], "replicates": 2, "reference_replicates": 1},
    "scaling-studies": {"structures": [MONARCH], "size_factors": [1, 2, 4], "replicates": 2, "compute_factors": [1]},
    "transfer-checks": {"structures": [MONARCH], "lr_mults": [0.5, 1, 2], "replicates": 1},
}
EACH = pytest.mark.parametrize("plural", QUICK)


def body(plural: str, **changes: Any) -> dict[str, Any]:
    return {"name": "measured", "proxy": PROXY, **QUICK[plural], **changes}


@pytest.fixture
def settings(settings: Settings, corpora_dir: Path) -> Settings:
    return settings.model_copy(update={"corpora_dir": corpora_dir})


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with LocalClient(create_app(settings)) as opened:
        yield opened


@pytest.fixture
def carry_out(
    database: Database, tmp_path: Path, corpora_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Has everything done that is to be done; laws of losses that follow none need not be fitted a hundred times."""
    monkeypatch.setattr(scaling, "NUM_DRAWS", 4)
    workspace = Workspace(cache_dir=tmp_path / "cache", corpora_dir=corpora_dir)

    def work() -> None:
        analyst = Analyst(database, corpora_dir)
        analyst.turn()
        run(database, LocalPool(workspace))
        analyst.turn()

    return work


class TestEveryKind:
    @EACH
    def test_is_submitted_listed_and_read(self, client: TestClient, plural: str, carry_out: Callable[[], None]) -> None:
        response = client.post(f"/v1/{plural}", json=body(plural))
        assert response.status_code == 201, response.text
        study = response.json()
        assert response.headers["Location"] == f"/v1/{plural}/{study['id']}"
        assert (study["state"], study["finding"], study["owner"]) == ("RUNNING", None, "local")
        for search_id in study["searches"].values():
            assert client.get(f"/v1/searches/{search_id}").json()["name"].startswith("measured: ")
        carry_out()
        study = client.get(response.headers["Location"]).json()
        assert (study["state"], study["reason"]) == ("COMPLETED", None)
        assert study["finding"]["kind"] == study["kind"]
        assert client.get(f"/v1/{plural}").json() == {"items": [study], "next_page_token": None}
        console = Console(file=StringIO(), width=200)
        show_study(console, study)
        assert console.file.getvalue().count("\n") > 3  # type: ignore[attr-defined]  # it is a StringIO

    @EACH
    def test_refuses_a_body_in_words_with_its_place(self, client: TestClient, plural: str) -> None:
        wrong = body(plural, replicates=-1, seed="3", depth=2)
        problem = problem_of(client.post(f"/v1/{plural}", json=wrong), 422)
        assert {error.pointer for error in problem.errors or ()} >= {"/seed", "/depth"}
        assert client.get(f"/v1/{plural}").json()["items"] == []

    @EACH
    def test_refuses_a_run_that_the_proxy_cannot_train(
        self, client: TestClient, plural: str, corpora_dir: Path
    ) -> None:
        (corpora_dir / "tabs.txt").write_text("\t\n" * 5000)
        for path in ("missing.txt", "tabs.txt"):
            proxy = {**PROXY, "corpus": {"kind": "file", "path": path}}
            problem_of(client.post(f"/v1/{plural}", json=body(plural, proxy=proxy)), 422)
        assert client.get("/v1/searches").json()["items"] == []

    @pytest.mark.parametrize(
        ("plural", "changes"),
        [
            ("fidelity-studies", {"proxy": {**PROXY, "train_flops": 1e21}}),
            ("fidelity-studies", {"proxy": {**PROXY, "dense_width": 4096}}),
            ("fidelity-studies", {"seed": 2**63 - 1}),
            ("fidelity-studies", {"structures": {"count": 500}, "replicates": 100}),
            ("baselines", {"proxy": {**PROXY, "train_flops": 1e21}}),
            ("baselines", {"width_factors": [64], "proxy": {**PROXY, "dense_width": 4096}}),
            ("scaling-studies", {"compute_factors": [1, 64], "proxy": {**PROXY, "train_flops": 1e21}}),
            ("transfer-checks", {"width_factors": [1, 64], "proxy": {**PROXY, "dense_width": 2048}}),
        ],
    )
    def test_refuses_plans_that_cannot_be_made(self, client: TestClient, plural: str, changes: dict[str, Any]) -> None:
        problem = problem_of(client.post(f"/v1/{plural}", json=body(plural, **changes)), 422)
        assert "plans of runs that its proxies can train" in str(problem.errors)
        assert client.get("/v1/searches").json()["items"] == []

    @EACH
    def test_is_begun_once_for_one_key(self, client: TestClient, plural: str) -> None:
        answers = [
            client.post(f"/v1/{plural}", json=body(plural), headers={"Idempotency-Key": "once"}) for _ in range(2)
        ]
        assert answers[0].json() == answers[1].json()
        assert len(client.get(f"/v1/{plural}").json()["items"]) == 1

    @EACH
    def test_is_not_found_under_another_id(self, client: TestClient, plural: str) -> None:
        problem = problem_of(client.get(f"/v1/{plural}/0123456789ab"), 404)
        assert "0123456789ab" in problem.detail


class TestQuota:
    def test_counts_the_searches_of_a_study(self, settings: Settings) -> None:
        limited = settings.model_copy(update={"max_active_searches": 2})
        with LocalClient(create_app(limited)) as client:
            problem_of(client.post("/v1/fidelity-studies", json=body("fidelity-studies")), 429)
            assert client.get("/v1/searches").json()["items"] == []
            assert client.post("/v1/baselines", json=body("baselines")).status_code == 201


class TestEvidence:
    SEARCH: ClassVar = {
        "name": "s",
        "proxy": PROXY,
        "budget": {"max_trials": 2},
        "space": {"seeds": ["dense", "monarch"]},
    }

    def test_of_fidelity_stands_with_every_search_of_the_proxy(
        self, client: TestClient, carry_out: Callable[[], None]
    ) -> None:
        before = client.post("/v1/searches", json=self.SEARCH).json()
        assert before["fidelity"] == "unmeasured"
        study = client.post("/v1/fidelity-studies", json=body("fidelity-studies")).json()
        carry_out()
        finding = client.get(f"/v1/fidelity-studies/{study['id']}").json()["finding"]
        assert client.get(f"/v1/searches/{before['id']}").json()["fidelity"] == {
            "study_id": study["id"],
            "between_seeds": finding["between_seeds"]["spearman"],
            "against_reference": finding["against_reference"]["spearman"],
            "truthful": finding["truthful"],
        }
        other = {**self.SEARCH, "proxy": {**PROXY, "train_flops": 2e6}}
        assert client.post("/v1/searches", json=other).json()["fidelity"] == "unmeasured"

    def test_of_the_baseline_stands_with_the_best_structures(
        self, client: TestClient, carry_out: Callable[[], None]
    ) -> None:
        search_id = client.post("/v1/searches", json=self.SEARCH).json()["id"]
        carry_out()
        assert [item["multiplier"] for item in client.get(f"/v1/searches/{search_id}/best").json()["items"]] == [
            None
        ] * 2
        client.post("/v1/baselines", json=body("baselines"))
        carry_out()
        for answer in ("best", "pareto"):
            for item in client.get(f"/v1/searches/{search_id}/{answer}").json()["items"]:
                found = item["multiplier"]
                assert 0 < found["low"] <= found["value"] <= found["high"]

    def test_of_a_transfer_check_stands_with_every_trial_of_the_structure(
        self, client: TestClient, carry_out: Callable[[], None]
    ) -> None:
        before = client.post("/v1/searches", json=self.SEARCH).json()["id"]
        carry_out()
        study = client.post("/v1/transfer-checks", json=body("transfer-checks")).json()
        carry_out()
        after = client.post("/v1/searches", json={**self.SEARCH, "sampler": {"kind": "random", "seed": 1}}).json()["id"]
        carry_out()
        finding = client.get(f"/v1/transfer-checks/{study['id']}").json()["finding"]
        known = finding["structures"][0]["transfers"]
        for search_id in (before, after):
            items = client.get(f"/v1/searches/{search_id}/trials").json()["items"]
            assert {item["family"]: item["transfers"] for item in items} == {"dense": None, "monarch": known}
            best = client.get(f"/v1/searches/{search_id}/best").json()["items"]
            assert {item["trial"]["family"]: item["trial"]["transfers"] for item in best} == {
                "dense": None,
                "monarch": known,
            }
