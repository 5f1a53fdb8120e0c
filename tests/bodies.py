"""Request bodies: the one that the documentation shows, and everything that could be sent in its place."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

EXAMPLE: Mapping[str, Any] = {
    "name": "btt on text",
    "proxy": {"kind": "char_lm", "dense_width": 32, "depth": 2, "train_flops": 1e11},
    "space": {
        "subspace": "full",
        "constraints": {"omega_max": 0.5, "nu_max": 1.0},
        "seeds": ["dense", "monarch", "low-rank"],
    },
    "sampler": {"kind": "tpe", "seed": 0},
    "pruner": {"kind": "none"},
    "objectives": [{"metric": "loss", "direction": "minimize"}],
    "budget": {"max_trials": 20},
    "replicates": 1,
    "concurrency": 2,
    "resources": {"cpus": 1, "gpus": 0},
}
"""The search of the design, section 7."""

MONARCH: Mapping[str, Any] = {"alpha": 0.5, "beta": 0, "gamma": 0.5, "delta": 0, "epsilon": 0.5, "phi": 0.5, "rho": 0}

DESCRIBE: Mapping[str, Any] = {"theta": MONARCH, "d_in": 512, "d_out": 512, "policy": "exact"}
"""A structure to describe."""

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
    *(2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400)),
    *("", "x", "2", "true", "nan", "\0", "a\0b", "\ud800", "\u202e", "é", "x" * 300, "../..", "{}"),
    *([], {}, [[]], [{}], {"kind": "file", "path": "corpus.txt"}, {"kind": "file", "path": "../x"}, {"kind": "tpe"}),
    *({"\ud800": 1}, {"\0": 1}, {"": 1}, {"a/b~c": 1}, {"kind": "\ud800"}, {"kind": []}, {"kind": 10**400}),
)
"""Values that have no business where they may turn up."""

_numbers = st.integers() | st.floats() | st.integers(0, 2000)
_texts = st.text(max_size=20) | st.sampled_from(["kind", "path", "tpe", "random", "char_lm", "stdlib", "file", "dense"])

json_values: SearchStrategy[Any] = st.recursive(
    st.sampled_from(STRANGE) | _numbers | _texts,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(_texts, values, max_size=4),
    max_leaves=12,
)
"""Any JSON, and what Python takes for JSON: NaN, Infinity, lone surrogates."""


@st.composite
def mutations(draw: st.DrawFn, body: Mapping[str, Any]) -> Any:
    """``body`` with some of its values changed, removed or joined by others."""
    changed: Any = body
    for _ in range(draw(st.integers(1, 3))):
        changed = _mutate(draw, changed)
    return changed


def _mutate(draw: st.DrawFn, node: Any) -> Any:
    """Walk down some way, and change what is there."""
    keys = sorted(node) if isinstance(node, Mapping) else list(range(len(node))) if isinstance(node, list) else []
    step = draw(st.sampled_from(["descend", "descend", "descend", "remove", "add", "replace"]))
    if not keys or step == "replace":
        return draw(json_values)
    key = draw(st.sampled_from(keys))
    if isinstance(node, list):
        inside = {"descend": [_mutate(draw, node[key])], "remove": [], "add": [node[key], node[key]]}[step]
        return [*node[:key], *inside, *node[key + 1 :]]
    if step == "remove":
        return {name: value for name, value in node.items() if name != key}
    if step == "add":
        return {**node, draw(_texts): draw(json_values)}
    return {**node, key: _mutate(draw, node[key])}
