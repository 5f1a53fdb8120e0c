from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from einlayers.theta import NAMED, Theta
from service import trials
from service.listings import METRICS
from service.models import Trial
from tests.api.problems import problem_of
from tests.bodies import DESCRIBE, MONARCH
from tests.rows import SPEC, TINY, Rows

WIDE = replace(SPEC, proxy=replace(TINY, width=256))
THETAS = [*NAMED.values(), *(Theta.normalise((a, 1, 2, 1, a, 1, r / 8)) for a in (2, 3) for r in range(3))]


def _all(client: TestClient, **query: Any) -> list[dict[str, Any]]:
    """The items on all pages, five a page."""
    found: list[dict[str, Any]] = []
    query["page_size"] = 5
    while True:
        page = client.get("/v1/structures", params=query).json()
        found += page["items"]
        if page["next_page_token"] is None:
            return found
        query["page_token"] = page["next_page_token"]


class TestList:
    @pytest.fixture
    def structures(self, rows: Rows) -> list[str]:
        """Completed trials of two searches, with equal losses among them."""
        first, second = rows.search(WIDE), rows.search(WIDE)
        losses = [(theta, 1 + number % 5 / 4) for number, theta in enumerate(THETAS)]
        made = [*rows.all_completed(first, losses[::2]), *rows.all_completed(second, losses[1::2])]
        with rows.database.write() as session:
            for trial in session.scalars(select(Trial)):
                trial.seconds = 1.0 + trial.number % 4
                trial.latency = (1.0 + trial.number % 3) / 8
                trial.peak_memory = 2**40 + trial.number % 5
        return made

    @pytest.mark.parametrize("metric", METRICS)
    def test_is_in_the_order_of_any_metric(self, metric: str, structures: list[str], client: TestClient) -> None:
        ascending = _all(client, order_by=metric)
        assert {item["id"] for item in ascending} == set(structures)
        assert ascending == sorted(ascending, key=lambda item: (item[metric], item["id"]))
        assert _all(client, order_by=metric, descending=True) == ascending[::-1]

    def test_is_by_loss_where_nothing_is_said(self, structures: list[str], client: TestClient) -> None:
        assert _all(client) == _all(client, order_by="loss", descending=False)

    @pytest.mark.parametrize("metric", METRICS)
    def test_keeps_the_bounds_on_any_metric(self, metric: str, structures: list[str], client: TestClient) -> None:
        values = sorted({item[metric] for item in _all(client)})
        low, high = values[1], values[-2]
        found = _all(client, **{f"{metric}_min": low, f"{metric}_max": high})
        assert found == [item for item in _all(client) if low <= item[metric] <= high]
        assert 0 < len(found) < len(structures)

    def test_keeps_to_a_family(self, structures: list[str], client: TestClient) -> None:
        for family in ("btt", "einsum", "dense"):
            assert _all(client, family=family) == [item for item in _all(client) if item["family"] == family]

    def test_keeps_to_a_proxy(self, structures: list[str], client: TestClient) -> None:
        assert _all(client, proxy="char_lm") == _all(client)
        assert _all(client, proxy="images") == []

    def test_shows_the_proxy_that_gave_the_loss(self, structures: list[str], client: TestClient) -> None:
        assert {item["proxy"]["width"] for item in _all(client)} == {256}

    def test_keeps_to_an_origin(self, structures: list[str], client: TestClient) -> None:
        assert _all(client, origin="search") == _all(client)
        assert _all(client, origin="user") == []

    def test_hides_what_is_excluded_unless_asked(self, structures: list[str], rows: Rows, client: TestClient) -> None:
        everything = _all(client)
        with rows.database.write() as session:
            trials.exclude(session, structures[3], "trained on the wrong text")
        assert _all(client) == [item for item in everything if item["id"] != structures[3]]
        assert [item["id"] for item in _all(client, include_excluded=True)] == [item["id"] for item in everything]

    @pytest.mark.parametrize(
        "other", [{"order_by": "psi"}, {"descending": True}, {"family": "btt"}, {"loss_max": 9}], ids=lambda it: str(it)
    )
    def test_refuses_the_token_of_another_list(
        self, other: Mapping[str, Any], structures: list[str], client: TestClient
    ) -> None:
        token = client.get("/v1/structures?page_size=1").json()["next_page_token"]
        problem_of(client.get("/v1/structures", params={**other, "page_token": token}), 400, "bad_page_token")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("loss_max", "nan"), ("macs_min", "inf"), ("psi_max", "high"), ("family", "circulant"), ("origin", "me")),
            *(("order_by", "width"), ("proxy", "../x"), ("include_excluded", "perhaps")),
        ],
    )
    def test_refuses_a_filter_that_makes_no_sense(self, name: str, value: str, shared_client: TestClient) -> None:
        problem = problem_of(shared_client.get("/v1/structures", params={name: value}), 422, "invalid_value")
        assert [field.pointer for field in problem.errors] == [f"?{name}"]

    @pytest.mark.parametrize("path", ["/v1/structures", "/v1/searches/{search_id}/trials"])
    def test_can_be_bounded_by_every_metric(self, path: str, shared_client: TestClient) -> None:
        parameters = shared_client.get("/openapi.json").json()["paths"][path]["get"]["parameters"]
        bounds = {f"{metric}_{end}" for metric in METRICS for end in ("min", "max")}
        assert {name for name in (it["name"] for it in parameters) if name.endswith(("_min", "_max"))} == bounds


def _describe(client: TestClient, theta: Theta | Mapping[str, Any], d_in: int, d_out: int, **more: Any) -> Any:
    names = ("alpha", "beta", "gamma", "delta", "epsilon", "phi", "rho")
    exponents = dict(zip(names, theta.exponents, strict=True)) if isinstance(theta, Theta) else theta
    response = client.post("/v1/structures:describe", json={"theta": exponents, "d_in": d_in, "d_out": d_out, **more})
    assert response.status_code == 200, response.text
    return response.json()


class TestDescribe:
    def test_tells_all_of_a_monarch_layer(self, shared_client: TestClient) -> None:
        described = _describe(shared_client, MONARCH, 512, 512)
        # 16 blocks of 32 x 16 and 32 blocks of 16 x 32, each used once per row.
        assert described["dims"] == {
            **{"alpha": 16, "beta": 1, "gamma": 32, "delta": 1, "epsilon": 32, "phi": 16, "rho": 1},
            **{"d_in": 512, "d_out": 512},
        }
        assert described["cost"] == {"params": 24576, "macs": 24576, "intermediate": 512, "order": "A_first"}
        assert described["taxonomy"] == {"omega": 0.0, "psi": 1.0, "nu": 0.5}
        assert (described["family"], described["rank"], described["dense_params"]) == ("monarch", 512, 262144)
        assert (described["padding_in"], described["padding_out"]) == (0.0, 0.0)
        assert described["theta"] == described["canonical"] == MONARCH
        assert described["rules"]["A"]["fan_in"] == 16

    def test_takes_the_exact_policy_where_none_is_named(self, shared_client: TestClient) -> None:
        body = {name: value for name, value in DESCRIBE.items() if name != "policy"}
        exact = shared_client.post("/v1/structures:describe", json=DESCRIBE).json()
        assert shared_client.post("/v1/structures:describe", json=body).json() == exact

    def test_rounds_as_the_papers_where_asked(self, shared_client: TestClient) -> None:
        described = _describe(shared_client, MONARCH, 512, 512, policy="round")
        assert [described["dims"][axis] for axis in ("alpha", "gamma", "epsilon", "phi")] == [23] * 4
        assert described["padding_in"] == pytest.approx(23 * 23 / 512 - 1, rel=1e-15)

    def test_calls_a_dense_layer_one_matrix(self, shared_client: TestClient) -> None:
        described = _describe(shared_client, NAMED["dense"], 48, 64)
        assert described["cost"] == {"params": 3072, "macs": 3072, "intermediate": 0, "order": "dense"}
        assert (described["family"], described["rank"]) == ("dense", 48)
        assert described["einsum"] == "y = einsum('...i,oi->...o', x, W)"

    @pytest.mark.parametrize("name", sorted(set(NAMED) - {"dense"}))
    @pytest.mark.parametrize("swapped", [False, True], ids=["as named", "swapped"])
    def test_gives_the_einsum_that_is_the_layer(self, name: str, swapped: bool, shared_client: TestClient) -> None:
        theta = NAMED[name].swapped() if swapped else NAMED[name]
        described = _describe(shared_client, theta, 12, 18)
        dims = described["dims"]
        draw = np.random.default_rng(0)
        phi, delta, rho, gamma, alpha, epsilon, beta = (
            dims[axis] for axis in ("phi", "delta", "rho", "gamma", "alpha", "epsilon", "beta")
        )
        names: dict[str, Any] = {
            "einsum": np.einsum,
            "x": draw.normal(size=(3, gamma, beta, alpha)),
            "A": draw.normal(size=(phi, delta, rho, gamma, alpha)),
            "B": draw.normal(size=(phi, epsilon, rho, gamma, beta)),
        }
        exec(described["einsum"], {}, names)
        expected = np.zeros((3, phi, epsilon, delta))
        for n, f, e, d, r, g, b, a in np.ndindex(3, phi, epsilon, delta, rho, gamma, beta, alpha):
            expected[n, f, e, d] += names["A"][f, d, r, g, a] * names["B"][f, e, r, g, b] * names["x"][n, g, b, a]
        np.testing.assert_allclose(names["y"], expected, rtol=1e-12, atol=1e-12)

    def test_knows_the_widest_layer(self, shared_client: TestClient) -> None:
        described = _describe(shared_client, MONARCH, 2**20, 2**20)
        assert described["cost"]["params"] == 2 * 2**30
        third = {
            "alpha": 1 / 3,
            "beta": 1 / 3,
            "gamma": 1 / 3,
            "delta": 1 / 3,
            "epsilon": 1 / 3,
            "phi": 1 / 3,
            "rho": 1,
        }
        assert _describe(shared_client, third, 2**20 - 3, 2**20 - 1)["rank"] == 2**20 - 3
