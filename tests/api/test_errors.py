import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from httpx2 import Response
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.testclient import TestClient

from api.errors import add_handlers
from service.errors import ServiceError
from tests.api.local import LocalClient
from tests.api.problems import problem_of
from tests.bodies import DESCRIBE, EXAMPLE, MONARCH, json_values, mutations
from tests.rows import Rows, contents

JSON = {"content-type": "application/json"}
MISSING = "this field is required"
NO_LIMIT = "expected max_trials, max_seconds or max_train_flops to be given, got None"


def _at(pointer: str, value: Any, body: Any = EXAMPLE) -> Any:
    """``body`` with a value at a JSON pointer, in place of what is there or new."""
    name, *rest = pointer.removeprefix("/").split("/", 1)
    if isinstance(body, list):
        return [_at(rest[0], value, item) if str(place) == name else item for place, item in enumerate(body)]
    return {**body, name: _at(rest[0], value, body.get(name, {})) if rest else value}


def _without(pointer: str, body: Mapping[str, Any]) -> Any:
    """``body`` without what is at a JSON pointer."""
    name, *rest = pointer.removeprefix("/").split("/", 1)
    if rest:
        return {**body, name: _without(rest[0], body[name])}
    return {key: value for key, value in body.items() if key != name}


def _case(pointer: str, value: Any, detail: str, where: str | None = None) -> Any:
    """A value that is refused: where it is put, what the detail says, where the problem points if not there."""
    return pytest.param(pointer, value, where if where is not None else pointer, detail, id=f"{pointer}={value!r:.40}")


NO_KINDS: tuple[Any, ...] = ("annealing", "TPE", "", "\ud800", "\0", None, 5, [], {}, 10**400, "x" * 10_000)
NO_COUNTS = (0, -1, 2**31, 2**63, 2**64, 10**400, -(10**400))
NO_WHOLE_NUMBERS: tuple[Any, ...] = (1.5, float("nan"), float("inf"), "three", "", None, [], {}, [1])
NO_NUMBERS = (float("nan"), float("inf"), -float("inf"), 0, -1, 1e300, 10**400)
NO_NUMBERS_AT_ALL: tuple[Any, ...] = ("many", "", None, [], {})
NO_TEXTS: tuple[Any, ...] = (None, 5, True, [], {})
NO_OBJECTS: tuple[Any, ...] = (None, 0, "tpe", [], True, [{}])
COUNTS = ("/budget/max_trials", "/replicates", "/concurrency", "/proxy/depth", "/proxy/num_heads", "/proxy/context")
NO_AXES: tuple[Any, ...] = ("x", True, [])
OBJECTS = (
    *("/proxy", "/space", "/space/axes", "/space/constraints", "/sampler", "/pruner", "/budget", "/resources"),
    "/proxy/corpus",
)
HUB = {"kind": "hugging_face", "name": "someone/texts"}
CIFAR10 = {"kind": "cifar10", "path": "missing"}
CIFAR5M = {"kind": "cifar5m", "path": "many", "parts": 1}

SEARCHES = [
    *(_case(pointer, value, "expected a whole number from") for pointer in COUNTS for value in NO_COUNTS),
    *(
        _case(pointer, value, "Input should be a ")
        for pointer in COUNTS
        for value in NO_WHOLE_NUMBERS
        if (pointer, value) != ("/budget/max_trials", None)
    ),
    _case("/budget/max_trials", None, NO_LIMIT),
    _case("/budget", {}, NO_LIMIT, "/budget/max_trials"),
    *(
        _case(pointer, value, "number")
        for pointer in ("/proxy/train_flops", "/proxy/base_lr")
        for value in (*NO_NUMBERS, *NO_NUMBERS_AT_ALL)
        if (pointer, value) != ("/proxy/base_lr", None)
    ),
    *(_case(pointer, value, "got") for pointer in OBJECTS for value in NO_OBJECTS),
    *(
        _case(f"{pointer}/{name}", 1, "Unexpected keyword argument, got 1")
        for pointer in ("", *OBJECTS[:-1], "/objectives/0")
        for name in ("dimension", "Name", "", "'; --")
    ),
    _case("/name", "", "expected 1 to 200 printable characters, got ''"),
    _case("/name", "x" * 201, "expected 1 to 200 printable characters, got 'xxx"),
    _case("/name", "a\0b", r"expected 1 to 200 printable characters, got 'a\x00b'"),
    _case("/name", "\ud800", r"expected 1 to 200 printable characters, got '\ud800'"),
    _case("/name", "two\nlines", r"expected 1 to 200 printable characters, got 'two\nlines'"),
    _case("/name", "\u202etxt", r"expected 1 to 200 printable characters, got '\u202etxt'"),
    *(_case("/name", value, "Input should be a valid string, got ") for value in NO_TEXTS),
    *(_case("/proxy/kind", kind, "whose kind is one of char_lm, ", "/proxy") for kind in NO_KINDS),
    *(_case("/sampler/kind", kind, "got ", "/sampler") for kind in NO_KINDS),
    *(_case("/sampler/seed", seed, "expected a whole number from 0 to") for seed in (-1, 2**63, 2**64, 10**400)),
    *(_case("/sampler/startup_trials", value, "expected a whole number from 1 to") for value in (0, 10**6)),
    _case(
        "/pruner/kind", "patience", "does not match any of the expected tags: 'none', 'successive-halving'", "/pruner"
    ),
    _case("/pruner", {"kind": "successive-halving", "reduction": 3}, "expected 2 or 4", "/pruner/reduction"),
    _case(
        "/pruner", {"kind": "hyperband", "min_share": 0.9}, "expected a number from 0.0625 to 0.5", "/pruner/min_share"
    ),
    _case("/pruner", {"kind": "extrapolation", "margin": 0}, "expected a number from 0.1 to 100", "/pruner/margin"),
    _case("/convergence", {"patience": 0}, "expected a whole number from 1 to", "/convergence/patience"),
    _case("/racing", {"max_replicates": 1}, "expected a whole number from 2 to 100", "/racing/max_replicates"),
    _case("/racing", {"confidence": 1}, "expected a number from 0.5 to 0.999", "/racing/confidence"),
    _case("/racing", {"replicates": 3}, "Unexpected keyword argument", "/racing/replicates"),
    _case("/convergence", {}, "a patience, or a min_improvement above 0", "/convergence/patience"),
    _case("/pruner", {"kind": "median", "reduction": 2}, "Unexpected keyword argument", "/pruner/reduction"),
    _case(
        "/space/subspace",
        "everything",
        "'full', 'btt', 'full-rank-btt', 'low-rank', 'kronecker', 'tensor-train' or 'monarch', got 'everything'",
    ),
    _case("/space/seeds", ["dense", "sparse"], "got 'sparse'", "/space/seeds/1"),
    _case("/space/seeds", ["dense", "dense"], "expected every design once"),
    _case("/space/seeds", "dense", "tuple"),
    _case("/space/constraints/omega_max", -0.1, "expected a number from 0 to 2, got -0.1"),
    _case("/space/constraints/nu_max", float("nan"), "expected a number from 0 to 2, got nan"),
    _case("/space/constraints/params_min", 1e16, "expected a number from 0 to 1e+15, got 1e+16"),
    _case("/space/constraints/omega_min", 0.75, "expected at least omega_min", "/space/constraints/omega_max"),
    _case("/space/constraints/params_max", 1, "expected bounds that some structure keeps", "/space/constraints"),
    _case("/space/constraints/padding_max", 1.5, "expected a number from 0 to 1, got 1.5"),
    _case("/space/axes", {"zeta": 0.5}, "Unexpected keyword argument, got 0.5", "/space/axes/zeta"),
    *(_case("/space/axes/gamma", value, "an instance of Bounds, got ") for value in NO_AXES),
    _case("/space/axes", {"gamma": {"min": -1}}, "expected a number from 0 to 1, got -1", "/space/axes/gamma/min"),
    _case("/space/axes", {"gamma": {"min": 0.5, "max": 0.2}}, "expected at least min", "/space/axes/gamma/max"),
    _case("/space/axes", {"alpha": 0.75, "beta": 0.5}, "bounds of beta that meet 0 to 0.25, which is what full with"),
    _case("/space/ties", ["alpha=beta"], "'alpha=epsilon', got 'alpha=beta'", "/space/ties/0"),
    _case("/space/ties", ["gamma=phi", "gamma=phi"], "expected every pair once"),
    _case("/objectives", [], "expected the loss first, and every metric once, got []"),
    _case("/objectives", [{}, {}], "expected the loss first, and every metric once, got ['loss', 'loss']"),
    _case("/objectives", [{"metric": "latency"}], "expected the loss first, and every metric once, got ['latency']"),
    _case(
        "/objectives", [{}, {"metric": "memory"}], "'latency' or 'peak_memory', got 'memory'", "/objectives/1/metric"
    ),
    _case("/objectives", [{"direction": "maximize"}], "'minimize', got 'maximize'", "/objectives/0/direction"),
    _case("/proxy/dense_width", 33, "expected a whole number from 4 to 4096 that is a multiple of 4, got 33"),
    _case("/proxy/width", 4100, "expected a whole number from 4 to 4096 that is a multiple of 4, got 4100"),
    _case("/proxy/num_heads", 3, "that is a multiple of 3, got 32", "/proxy/dense_width"),
    _case("/proxy/mixture/top_k", 9, "expected a whole number from 1 to 8, got 9"),
    _case("/proxy/mixture/of", "attention", "Input should be 'layers' or 'feed_forward', got 'attention'"),
    _case("/proxy/mixture/experts", 4, "Unexpected keyword argument, got 4"),
    _case("/proxy/mixture", "btt", "got 'btt'"),
    _case("/proxy/head_aligned_rank", 0, "expected a whole number from 1 to 4096, got 0"),
    _case("/proxy/base_depth", 0, "expected a whole number from 1 to 96, got 0"),
    _case("/proxy/data_seed", -1, "expected a whole number from 0 to"),
    _case("/resources/cpus", -1, "expected a number from 0 to 1024, got -1"),
    _case("/resources/cpus", float("nan"), "expected a number from 0 to 1024, got nan"),
    _case("/resources/cpus", 0, "expected a positive share of a CPU or a GPU, got 0"),
    _case("/resources/gpus", 1.5, "expected a share of one GPU (0 to 1) or a whole number, got 1.5"),
    *(
        _case("/proxy/corpus", {"kind": "file", "path": path}, detail, "/proxy/corpus/path")
        for path, detail in (
            ("..", "expected a text file below the directory"),
            ("../secret.txt", "expected a text file below the directory"),
            ("/corpus.txt", "expected a text file below the directory"),
            (".", "expected a text file below the directory"),
            ("missing.txt", "expected a text file below the directory"),
            ("way-out.txt", "expected a text file below the directory"),
            ("x" * 5000, "expected a text file below the directory"),
            ("corpus.txt\0", r"expected a printable path, got 'corpus.txt\x00'"),
            ("\ud800", r"expected a printable path, got '\ud800'"),
        )
    ),
    _case("/proxy/corpus", {"kind": "file", "path": 5}, "valid string, got 5", "/proxy/corpus/path"),
    _case("/proxy/corpus", {"kind": "file"}, MISSING, "/proxy/corpus/path"),
    _case("/proxy/corpus", {"kind": "stdlib", "path": "x"}, "Unexpected keyword", "/proxy/corpus/path"),
    _case("/proxy/corpus/kind", "s3", "got ", "/proxy/corpus"),
    _case("/proxy/corpus", {"kind": "file", "path": "tabs.txt"}, "at least 1300 characters in", "/proxy/corpus/path"),
    *(
        _case("/proxy/corpus", {"kind": "hugging_face", "name": name}, "as OWNER/NAME, got", "/proxy/corpus/name")
        for name in ("", "text", "../texts", "/etc/passwd", "a/b/c", "hf://a/b", "someone/texts.py", "https://a.b/c")
    ),
    _case("/proxy/corpus", {**HUB, "split": "train[:10]"}, "letters, digits and", "/proxy/corpus/split"),
    _case("/proxy/corpus", {**HUB, "data_files": "/etc/passwd"}, "Unexpected keyword", "/proxy/corpus/data_files"),
    _case("/proxy", {"kind": "image_mlp", "images": CIFAR10}, "expected a directory with", "/proxy/images/path"),
    _case("/proxy", {"kind": "image_vit", "images": CIFAR5M}, "to be an archive of", "/proxy/images/path"),
    _case("/proxy", {"kind": "next_pixel", "images": {**HUB, "size": 64, "num_classes": 9}}, "4096", "/proxy/images"),
]

_THETA_SUM = "exponents that sum to 1, got "

STRUCTURES = [
    _case("/theta/alpha", 0.9, f"alpha + beta + gamma: expected {_THETA_SUM}1.4", "/theta"),
    _case("/theta/alpha", 0.0, f"alpha + beta + gamma: expected {_THETA_SUM}0.5", "/theta"),
    _case("/theta/phi", 0.9, f"delta + epsilon + phi: expected {_THETA_SUM}1.4", "/theta"),
    _case("/theta/phi", 0.511, f"delta + epsilon + phi: expected {_THETA_SUM}1.011", "/theta"),
    *(
        _case(f"/theta/{axis}", value, "exponent between 0 and 1, got ")
        for axis in ("alpha", "rho")
        for value in (-0.1, 1.1, float("nan"), float("inf"), -float("inf"), 1e300)
    ),
    *(_case("/theta/rho", value, "number") for value in (*NO_NUMBERS_AT_ALL, 10**400)),
    *(_case(f"/theta/{name}", 0, "Unexpected keyword argument, got 0") for name in ("zeta", "Alpha", "")),
    *(_case("/theta", value, "got ") for value in (*NO_OBJECTS, "(1|0|0|0|1|0|0)", [0.5] * 7)),
    *(
        _case(f"/{width}", value, "expected a whole number from 1 to 1048576, got ")
        for width in ("d_in", "d_out")
        for value in (0, -1, 2**20 + 1, 2**63, 2**64, 10**400)
    ),
    *(_case("/d_in", value, "Input should be a ") for value in NO_WHOLE_NUMBERS),
    *(_case("/policy", value, "Input should be 'exact' or 'round', got ") for value in ("floor", None, 1)),
    _case("/policy", "\ud800", "Input should be a valid string"),
    _case("/bias", True, "Unexpected keyword argument, got True"),
]

MALFORMED = {
    "not JSON": b"theta",
    "cut off": b'{"name": "x", ',
    "two documents": b"{}{}",
    "a trailing comma": b'{"name": "x",}',
    "single quotes": b"{'name': 'x'}",
    "not UTF-8": b'{"name": "\xff"}',
    "nested too deep": b"[" * 100_000 + b"]" * 100_000,
    "nested too deep in a field": b'{"name": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    "nested too deep and cut off": b"[" * 100_000,
    "more digits than a number may have": b'{"replicates": 1' + b"0" * 5000 + b"}",
}

POSTS = ("/v1/searches", "/v1/searches:validate", "/v1/structures:describe")

IDS = {
    "NUL": "a%00b",
    "a slash": "a%2Fb",
    "two dots": "%2E%2E",
    "two dots and a slash": "%2E%2E%2Fsearches",
    "a newline": "abc%0A",
    "no UTF-8": "%FF",
    "a surrogate": "%ED%A0%80",
    "not ASCII": "%C3%A9",
    "upper case": "ABCDEF",
    "a space": "%20",
    "33 digits": "a" * 33,
    "8000 digits": "a" * 8000,
    "a quote": "'",
    "a percent sign": "%25",
    "a minus sign": "-1",
    "nobody's": "f" * 12,
}

WITH_IDS = (
    ("GET", "/v1/searches/{}"),
    ("GET", "/v1/searches/{}/best"),
    ("GET", "/v1/searches/{}/hypervolume"),
    ("GET", "/v1/searches/{}/comparison?a=ff-0&b=ff-1"),
    ("GET", "/v1/searches/{}/trials"),
    ("POST", "/v1/searches/{}:pause"),
    ("POST", "/v1/searches/{}:resume"),
    ("POST", "/v1/searches/{}:cancel"),
    ("GET", "/v1/trials/{}"),
    ("GET", "/v1/trials/{}-0"),
    ("GET", "/v1/trials/{}/measurements"),
    ("GET", "/v1/trials/{}-0/measurements"),
)

BAD_PARAMETERS = [
    *(
        (path, "page_size", value)
        for path in ("/v1/searches", "/v1/structures", "/v1/searches/{}/trials")
        for value in ("0", "-1", "501", "1e3", "ten", "", "1" * 5000, "\0")
    ),
    *((path, "page_token", "x" * 1001) for path in ("/v1/searches", "/v1/structures", "/v1/searches/{}/trials")),
    *(("/v1/searches/{}/best", "limit", value) for value in ("0", "501", "x", "1" * 400)),
    *(("/v1/searches/{}/trials", "state", value) for value in ("completed", "", "\0", "x" * 5000)),
    *(("/v1/structures", "order_by", value) for value in ("speed", "", "loss; --", "\0")),
    *(("/v1/structures", "descending", value) for value in ("maybe", "2", "\0")),
    *(("/v1/structures", "family", value) for value in ("sparse", "Dense", "\0")),
    *(("/v1/structures", "proxy", value) for value in ("Char", "a b", "\0", "x" * 33, "")),
    *(
        ("/v1/structures", f"{metric}_{bound}", value)
        for metric in ("loss", "omega", "psi", "nu", "params", "macs", "latency", "peak_memory")
        for bound in ("min", "max")
        for value in ("nan", "inf", "-inf", "1e400", "x", "", "\0")
    ),
]

BAD_TOKENS = ("", "x", "!", "é", "\0", "bnVsbA", "e30", "W10", "W251bGwsbnVsbF0", "WyJ4IiwieCJd", "A" * 1000)


def _refused(client: TestClient, path: str, body: Any, where: str, detail: str) -> None:
    """Posting ``body`` is answered by a problem that points to ``where`` and has ``detail`` there."""
    problem = problem_of(client.post(path, content=json.dumps(body), headers=JSON), 422, "invalid_value")
    found = {field.pointer: field.detail for field in problem.errors}
    assert where in found, found
    assert detail in found[where]
    assert ", got " in found[where] or found[where] == MISSING
    assert len(found[where]) < 1000


# What is refused here is refused before any database is asked.
@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
class TestBody:
    @pytest.fixture(autouse=True)
    def _leaves_no_trace(self, shared: Rows, search_id: str) -> Any:
        before = contents(shared.database)
        yield
        assert contents(shared.database) == before

    @pytest.mark.parametrize(("pointer", "value", "where", "detail"), SEARCHES)
    def test_of_a_search_with_a_bad_value_is_refused(
        self, pointer: str, value: Any, where: str, detail: str, shared_client: TestClient
    ) -> None:
        for path in ("/v1/searches", "/v1/searches:validate"):
            _refused(shared_client, path, _at(pointer, value), where, detail)

    @pytest.mark.parametrize(("pointer", "value", "where", "detail"), STRUCTURES)
    def test_of_a_structure_with_a_bad_value_is_refused(
        self, pointer: str, value: Any, where: str, detail: str, shared_client: TestClient
    ) -> None:
        _refused(shared_client, "/v1/structures:describe", _at(pointer, value, DESCRIBE), where, detail)

    @pytest.mark.parametrize("pointer", ["/name", "/budget"])
    def test_of_a_search_that_lacks_something_is_refused(self, pointer: str, shared_client: TestClient) -> None:
        for path in ("/v1/searches", "/v1/searches:validate"):
            _refused(shared_client, path, _without(pointer, EXAMPLE), pointer, MISSING)

    @pytest.mark.parametrize("pointer", ["/theta", "/d_in", "/d_out", *(f"/theta/{axis}" for axis in MONARCH)])
    def test_of_a_structure_that_lacks_something_is_refused(self, pointer: str, shared_client: TestClient) -> None:
        _refused(shared_client, "/v1/structures:describe", _without(pointer, DESCRIBE), pointer, MISSING)

    @pytest.mark.parametrize("value", [True, False, "1", "1e9", " 2 "], ids=repr)
    @pytest.mark.parametrize(
        "pointer", ["/budget/max_trials", "/concurrency", "/sampler/seed", "/proxy/train_flops", "/resources/cpus"]
    )
    def test_of_a_search_with_text_or_truth_for_a_number_is_refused(
        self, pointer: str, value: Any, shared_client: TestClient
    ) -> None:
        for path in ("/v1/searches", "/v1/searches:validate"):
            _refused(shared_client, path, _at(pointer, value), pointer, "got ")

    @pytest.mark.parametrize("value", [True, False, "0", "0.5"], ids=repr)
    @pytest.mark.parametrize("pointer", ["/theta/rho", "/d_in"])
    def test_of_a_structure_with_text_or_truth_for_a_number_is_refused(
        self, pointer: str, value: Any, shared_client: TestClient
    ) -> None:
        _refused(shared_client, "/v1/structures:describe", _at(pointer, value, DESCRIBE), pointer, "got ")

    @pytest.mark.parametrize("body", [None, 5, "x", [], [EXAMPLE], True, 1.5], ids=lambda body: type(body).__name__)
    @pytest.mark.parametrize("path", POSTS)
    def test_that_is_no_object_is_refused(self, path: str, body: Any, shared_client: TestClient) -> None:
        response = shared_client.post(path, content=json.dumps(body), headers=JSON)
        assert [field.pointer for field in problem_of(response, 422, "invalid_value").errors] == [""]

    @pytest.mark.parametrize("path", POSTS)
    def test_that_is_missing_is_refused(self, path: str, shared_client: TestClient) -> None:
        (field,) = problem_of(shared_client.post(path, content=b"", headers=JSON), 422, "invalid_value").errors
        assert field.pointer == ""
        (field,) = problem_of(shared_client.post(path), 422, "invalid_value").errors
        assert field.pointer == ""

    @pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
    @pytest.mark.parametrize("path", POSTS)
    def test_that_is_malformed_is_refused(self, path: str, content: bytes, shared_client: TestClient) -> None:
        problem_of(shared_client.post(path, content=content, headers=JSON), 400, "malformed_body")

    @pytest.mark.parametrize(
        "media_type",
        [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", "x"],
    )
    @pytest.mark.parametrize("path", POSTS)
    def test_of_another_media_type_is_refused(
        self, path: str, media_type: str | None, shared_client: TestClient
    ) -> None:
        body = DESCRIBE if path.endswith("describe") else EXAMPLE
        headers = {"content-type": media_type} if media_type else {}
        response = shared_client.post(path, content=json.dumps(body).encode(), headers=headers)
        assert "application/json" in problem_of(response, 415, "unsupported_media_type").detail

    @pytest.mark.parametrize("path", POSTS)
    def test_that_is_too_large_is_refused(self, path: str, shared_client: TestClient) -> None:
        content = b'{"name": "' + b"x" * 10_000_000 + b'"}'
        problem_of(shared_client.post(path, content=content, headers=JSON), 413)
        # In parts, whose number nobody says beforehand.
        parts = (content[start : start + 100_000] for start in range(0, len(content), 100_000))
        problem_of(shared_client.post(path, content=parts, headers=JSON), 413)

    def test_with_many_bad_values_is_refused_for_all_of_them(self, shared_client: TestClient) -> None:
        body = {**EXAMPLE, "replicates": "x", "extra": 1, "space": {"subspace": "x", "seeds": ["x", "y"]}}
        problem = problem_of(shared_client.post("/v1/searches", json=body), 422, "invalid_value")
        assert {field.pointer for field in problem.errors} == {
            *("/replicates", "/extra", "/space/subspace", "/space/seeds/0", "/space/seeds/1")
        }
        assert "5 values" in problem.detail

    def test_points_by_the_rules_of_json_pointers(self, shared_client: TestClient) -> None:
        body = {**EXAMPLE, "a/b~c": 1}
        (field,) = problem_of(shared_client.post("/v1/searches", json=body), 422).errors
        assert field.pointer == "/a~1b~0c"

    @pytest.mark.parametrize("charset", ["application/json; charset=utf-8", "APPLICATION/JSON"])
    def test_of_json_by_another_spelling_is_accepted(self, charset: str, shared_client: TestClient) -> None:
        response = shared_client.post(
            "/v1/searches:validate", content=json.dumps(EXAMPLE), headers={"content-type": charset}
        )
        assert response.status_code == 200


class TestAnyBody:
    """Whatever is sent, the answer is what was asked for or a problem; and what is refused writes nothing."""

    @staticmethod
    def _post(client: TestClient, path: str, body: Any) -> int:
        response = client.post(path, content=json.dumps(body), headers=JSON)
        if response.status_code >= 400:
            problem_of(response, response.status_code)
        return response.status_code

    @settings(max_examples=150)
    @given(body=json_values | mutations(EXAMPLE))
    def test_submits_a_search_or_is_refused(self, shared: Rows, shared_client: TestClient, body: Any) -> None:
        before = contents(shared.database)
        status = self._post(shared_client, "/v1/searches", body)
        after = contents(shared.database)
        assert status in (201, 400, 422)
        num_written = len(after["searches"]) - len(before["searches"])
        assert num_written == (status == 201)
        if status != 201:
            assert after == before

    @settings(max_examples=150)
    @given(body=json_values | mutations(EXAMPLE))
    def test_is_estimated_as_it_would_be_submitted(self, shared: Rows, shared_client: TestClient, body: Any) -> None:
        before = contents(shared.database)
        status = self._post(shared_client, "/v1/searches:validate", body)
        assert contents(shared.database) == before
        assert status in (200, 400, 422)
        submitted = self._post(shared_client, "/v1/searches", body)
        assert submitted == (201 if status == 200 else status)

    @settings(max_examples=150)
    @given(body=json_values | mutations(DESCRIBE))
    def test_describes_a_structure_or_is_refused(self, shared: Rows, shared_client: TestClient, body: Any) -> None:
        before = contents(shared.database)
        assert self._post(shared_client, "/v1/structures:describe", body) in (200, 400, 422)
        assert contents(shared.database) == before

    @given(content=st.binary(max_size=40), path=st.sampled_from(POSTS))
    def test_of_bytes_is_refused(self, shared: Rows, shared_client: TestClient, content: bytes, path: str) -> None:
        before = contents(shared.database)
        response = shared_client.post(path, content=content, headers=JSON)
        problem_of(response, response.status_code)
        assert response.status_code in (400, 422)
        assert contents(shared.database) == before


class TestPath:
    @pytest.mark.parametrize("identifier", IDS.values(), ids=IDS)
    def test_of_no_resource_is_not_found(self, identifier: str, shared_client: TestClient) -> None:
        for method, path in WITH_IDS:
            response = shared_client.request(method, path.format(identifier))
            assert response.request.url.raw_path == path.format(identifier).encode()
            problem_of(response, 404, "not_found")

    def test_that_does_not_exist_is_not_found(self, shared_client: TestClient) -> None:
        for path in ("/v1", "/v2/searches", "/v1/search", "/redoc"):
            problem_of(shared_client.get(path), 404, "not_found")

    def test_by_another_method_is_refused_and_tells_the_right_one(
        self, shared_client: TestClient, search_id: str
    ) -> None:
        for method, path, allowed in (
            ("PUT", "/v1/structures", "GET"),
            ("DELETE", f"/v1/trials/{search_id}-0", "GET"),
            ("GET", "/v1/structures:describe", "POST"),
        ):
            response = shared_client.request(method, path)
            problem_of(response, 405, "method_not_allowed")
            assert response.headers["allow"] == allowed

    def test_of_no_action_is_refused(self, shared: Rows, shared_client: TestClient, search_id: str) -> None:
        before = contents(shared.database)
        response = shared_client.post(f"/v1/searches/{search_id}:explode")
        assert response.status_code in (404, 405)
        problem_of(response, response.status_code)
        assert contents(shared.database) == before


class TestParameters:
    @pytest.mark.parametrize(("path", "name", "value"), BAD_PARAMETERS)
    def test_with_a_bad_value_are_refused(
        self, path: str, name: str, value: str, shared_client: TestClient, search_id: str
    ) -> None:
        response = shared_client.get(path.format(search_id), params={name: value})
        (field,) = problem_of(response, 422, "invalid_value").errors
        assert field.pointer == f"?{name}"
        assert ", got " in field.detail

    @pytest.mark.parametrize("token", BAD_TOKENS)
    @pytest.mark.parametrize("path", ["/v1/searches", "/v1/structures", "/v1/searches/{}/trials"])
    def test_with_a_bad_page_token_are_refused(
        self, path: str, token: str, shared_client: TestClient, search_id: str
    ) -> None:
        response = shared_client.get(path.format(search_id), params={"page_token": token})
        assert "page_token" in problem_of(response, 400, "bad_page_token").detail

    @given(
        path=st.sampled_from(["/v1/searches", "/v1/structures"]),
        query=st.dictionaries(
            st.sampled_from(["page_size", "page_token", "order_by", "descending", "proxy", "loss_min", "params_max"]),
            st.text(max_size=8)
            | st.floats().map(str)
            | st.integers().map(str)
            | st.sampled_from(["loss", "params", "true", "char_lm", "WzEuMCwieCJd"]),
            max_size=4,
        ),
    )
    def test_of_any_kind_are_served_or_refused(
        self, shared_client: TestClient, path: str, query: dict[str, str]
    ) -> None:
        response = shared_client.get(path, params=query)
        assert response.status_code in (200, 400, 422)
        if response.status_code != 200:
            problem_of(response, response.status_code)


class Fault(Exception):
    """What a driver of a database raises, with the code that Postgres gives."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__("secret")
        self.sqlstate = sqlstate


class Teapot(ServiceError):
    """A refusal of its own kind."""

    status_code = 418
    code = "teapot"
    headers = MappingProxyType({"Retry-After": "7", "X-Tea": "green"})


def _answer_to(error: Exception) -> Response:
    """What a request is answered that ends with an error."""
    app = FastAPI()
    add_handlers(app)

    @app.get("/")
    def fail() -> None:
        raise error

    with LocalClient(app, raise_server_exceptions=False) as client:
        return client.get("/", headers={"X-Request-Id": "from-the-client"})


class TestRefusals:
    def test_of_any_kind_are_told_with_their_headers(self) -> None:
        response = _answer_to(Teapot("short and stout"))
        assert problem_of(response, 418, "teapot").detail == "short and stout"
        assert (response.headers["retry-after"], response.headers["x-tea"]) == ("7", "green")

    def test_name_the_request(self) -> None:
        for error, status in ((Teapot("short"), 418), (HTTPException(404), 404), (RuntimeError(), 500)):
            response = _answer_to(error)
            assert problem_of(response, status).request_id == "from-the-client"
            assert response.headers["x-request-id"] == "from-the-client"


class TestDatabase:
    @pytest.mark.parametrize(
        "error",
        [
            OperationalError("SELECT secret", {}, Fault("57P01")),
            InterfaceError("SELECT secret", {}, Fault("")),
            PoolTimeout("QueuePool limit of size 5 overflow 10 reached"),
            ProgrammingError("SELECT secret", {}, Fault("42P01")),
            ProgrammingError("SELECT secret", {}, Fault("42703")),
        ],
        ids=["no answer", "no connection", "no free connection", "no table", "no column"],
    )
    def test_that_cannot_be_used_now_is_told_as_that(self, error: Exception) -> None:
        response = _answer_to(error)
        problem_of(response, 503, "database_unavailable")
        assert response.headers["retry-after"] == "5"
        assert "secret" not in response.text

    def test_that_refuses_a_wrong_statement_is_not_to_blame(self) -> None:
        problem_of(_answer_to(ProgrammingError("SELECT secret", {}, Fault("42601"))), 500, "internal_error")


class TestUnexpected:
    def test_faults_tell_nothing_of_the_inside(self) -> None:
        response = _answer_to(RuntimeError("secret"))
        problem_of(response, 500, "internal_error")
        assert "secret" not in response.text
