"""Variants over HTTP: asked for, answered, exported, refused."""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.api.problems import problem_of
from tests.bodies import MONARCH

SPARSE: Mapping[str, Any] = {
    **{"kind": "char_lm", "dense_width": 8, "depth": 1, "train_flops": 1e6, "base_lr": 0.005},
    "mixture": {"num_experts": 4, "top_k": 2},
}
AXES: Mapping[str, Any] = {"num_experts": {"min": 2, "max": 8}, "top_k": {"min": 1, "max": 2}}


def body(proxy: Mapping[str, Any], space: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
    return {"name": "x", "budget": {"max_trials": 9}, "proxy": proxy, "space": space, **rest}


def pointers(client: TestClient, sent: Mapping[str, Any]) -> list[str]:
    return [error.pointer for error in problem_of(client.post("/v1/searches", json=sent), 422, "invalid_value").errors]


class TestNumbersOfExperts:
    def test_are_axes_of_the_space(self, client: TestClient) -> None:
        sent = body(SPARSE, {"mixture": AXES})
        assert client.post("/v1/searches:validate", json=sent).status_code == 200
        answer = client.post("/v1/searches", json=sent)
        assert answer.status_code == 201
        assert answer.json()["spec"]["space"]["mixture"] == AXES

    @pytest.mark.parametrize(
        ("proxy", "space", "pointer"),
        [
            ({"kind": "char_lm"}, {"mixture": AXES}, "/space"),
            (SPARSE, {"mixture": {"num_experts": {"min": 1, "max": 8}}}, "/space"),
            (SPARSE, {"mixture": {"num_experts": {"min": 8, "max": 4}}}, "/space/mixture/num_experts/max"),
            (SPARSE, {"mixture": {"num_experts": {"min": 1, "max": 2000}}}, "/space/mixture/num_experts/max"),
            (SPARSE, {"mixture": {"num_experts": {"min": 1.5, "max": 8}}}, "/space/mixture/num_experts/min"),
            (SPARSE, {"mixture": {"experts": {"min": 1, "max": 8}}}, "/space/mixture/experts"),
            (SPARSE, {"mixture": {}}, "/space/mixture/num_experts"),
        ],
    )
    def test_that_cannot_be_are_refused(
        self, proxy: Mapping[str, Any], space: Mapping[str, Any], pointer: str, client: TestClient
    ) -> None:
        assert pointers(client, body(proxy, space)) == [pointer]

    @pytest.mark.parametrize("sampler", [{"kind": "grid"}, {"kind": "plan", "runs": [{"theta": MONARCH}]}], ids=str)
    def test_are_refused_for_lists_of_structures(self, sampler: Mapping[str, Any], client: TestClient) -> None:
        assert pointers(client, body(SPARSE, {"mixture": AXES}, sampler=sampler)) == ["/sampler"]

    def test_are_said_of_a_trial_and_exported(self, client: TestClient) -> None:
        search_id = client.post("/v1/searches", json=body(SPARSE, {"mixture": AXES})).json()["id"]
        sent = {"theta": MONARCH, "variant": {"num_experts": 8}}
        trial = client.post(f"/v1/searches/{search_id}/trials", json=sent).json()
        plain = client.post(f"/v1/searches/{search_id}/trials", json={"theta": MONARCH}).json()
        assert (trial["variant"]["num_experts"], trial["variant"]["top_k"], plain["variant"]) == (8, None, None)
        assert trial["params"] > plain["params"]
        assert client.get(f"/v1/trials/{trial['id']}").json()["variant"] == trial["variant"]
        table, lines = (client.get(f"/v1/searches/{search_id}/export?format={kind}").text for kind in ("csv", "jsonl"))
        assert [row["variant"] for row in csv.DictReader(io.StringIO(table))] == ["num_experts=8", ""]
        assert [json.loads(line)["variant"] for line in lines.splitlines()] == [trial["variant"], None]

    @pytest.mark.parametrize("variant", [{}, {"num_experts": 1}, {"top_k": 0}, {"top_k": "2"}, {"experts": 2}, 3])
    def test_that_a_trial_cannot_have_are_refused(self, variant: Any, client: TestClient) -> None:
        search_id = client.post("/v1/searches", json=body(SPARSE, {})).json()["id"]
        answer = client.post(f"/v1/searches/{search_id}/trials", json={"theta": MONARCH, "variant": variant})
        assert all(error.pointer.startswith("/variant") for error in problem_of(answer, 422, "invalid_value").errors)


class TestGroups:
    def test_are_axes_of_the_space(self, client: TestClient) -> None:
        sent = body({"kind": "char_lm"}, {"groups": ["attention"], "constraints": {"omega_max": 0.5, "macs_max": 1e9}})
        assert client.post("/v1/searches:validate", json=sent).status_code == 200
        answer = client.post("/v1/searches", json=sent)
        assert answer.status_code == 201
        assert answer.json()["spec"]["space"]["groups"] == ["attention"]

    @pytest.mark.parametrize(
        ("proxy", "space", "pointer"),
        [
            ({"kind": "regression"}, {"groups": ["feed_forward"]}, "/space"),
            ({"kind": "char_lm"}, {"groups": ["attention", "feed_forward"]}, "/space"),
            ({"kind": "char_lm"}, {"groups": ["attention", "attention"]}, "/space/groups"),
            ({"kind": "char_lm"}, {"groups": ["heads"]}, "/space/groups/0"),
            ({"kind": "regression", "thetas": {"attention": MONARCH}}, {}, "/proxy/thetas"),
            ({"kind": "char_lm", "thetas": {}}, {}, "/proxy/thetas/attention"),
        ],
    )
    def test_that_cannot_be_are_refused(
        self, proxy: Mapping[str, Any], space: Mapping[str, Any], pointer: str, client: TestClient
    ) -> None:
        assert pointers(client, body(proxy, space)) == [pointer]

    def test_can_have_a_structure_that_the_proxy_fixes(self, client: TestClient) -> None:
        proxy = {**SPARSE, "mixture": None, "thetas": {"attention": MONARCH}}
        search_id = client.post("/v1/searches", json=body(proxy, {})).json()["id"]
        dense = {"alpha": 0, "beta": 0, "gamma": 1, "delta": 0, "epsilon": 0, "phi": 1, "rho": 0}
        trial = client.post(f"/v1/searches/{search_id}/trials", json={"theta": dense}).json()
        assert trial["variant"] is None
        assert trial["family"] == "dense"
        # Dense has nothing but gamma and phi.
        assert trial["dims"]["attention"]["alpha"] > 1
        assert trial["dims"]["up"]["alpha"] == trial["dims"]["down"]["alpha"] == 1

    def test_are_said_of_a_trial_and_exported(self, client: TestClient) -> None:
        search_id = client.post("/v1/searches", json=body({**SPARSE, "mixture": None}, {})).json()["id"]
        sent = {"theta": MONARCH, "variant": {"thetas": {"attention": {**MONARCH, "rho": 0.25}}}}
        trial = client.post(f"/v1/searches/{search_id}/trials", json=sent).json()
        said = trial["variant"]["thetas"]
        assert (said["attention"]["rho"], said["feed_forward"], trial["theta"]["rho"]) == (0.25, None, 0)
        table, lines = (client.get(f"/v1/searches/{search_id}/export?format={kind}").text for kind in ("csv", "jsonl"))
        (row,) = csv.DictReader(io.StringIO(table))
        assert row["variant"] == "attention=(0.5|0|0.5|0|0.5|0.5|0.25)"
        assert json.loads(lines)["variant"] == trial["variant"]
