"""A service under attack: every call is checked against the OpenAPI document, and no refused one may have changed a row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import schemathesis
from fastapi import FastAPI
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, HookContext, Response
from schemathesis.schemas import BaseSchema

from api.app import create_app
from einlayers.errors import FieldError
from einlayers.theta import NAMED, Theta
from search.states import SearchState
from search.trial import Outcome
from service import addresses, keys, trials, webhooks
from service.keys import LOCAL, Scope
from service.settings import Settings
from tests.fuzzing import FACTOR, Everything, everything
from tests.rows import Rows, point
from tests.strategies import thetas

HERE = "http://127.0.0.1:9/hook"
"""A receiver of webhooks on this machine that nobody is."""

Known = Mapping[str, list[str]]
"""The ids of what there is, by the parameter that they are put into."""


def _theta(theta: Theta) -> dict[str, float]:
    return {name: getattr(theta, name) for name in ("alpha", "beta", "gamma", "delta", "epsilon", "phi", "rho")}


_thetas = st.one_of(st.sampled_from(list(NAMED.values())), thetas()).map(_theta)
_budgets = st.fixed_dictionaries(
    {"max_trials": st.integers(1, 8)},
    optional={"max_seconds": st.integers(1, 1000), "max_train_flops": st.sampled_from([1e6, 3.5e6, 1e26])},
)
_proxies = st.fixed_dictionaries(
    {"dense_width": st.sampled_from([8, 16]), "num_heads": st.sampled_from([1, 2]), "train_flops": st.just(1e6)},
    optional={
        "depth": st.integers(1, 3),
        "corpus": st.sampled_from([{"kind": "stdlib"}, {"kind": "file", "path": "corpus.txt"}]),
    },
)
_searches = st.fixed_dictionaries(
    {"name": st.text("abc é", min_size=1, max_size=9), "budget": _budgets, "proxy": _proxies},
    optional={
        "sampler": st.sampled_from([{"kind": "random", "seed": 3}, {"kind": "tpe", "startup_trials": 2}]),
        "space": st.fixed_dictionaries({"seeds": st.lists(st.sampled_from(list(NAMED)), unique=True, max_size=3)}),
        "concurrency": st.integers(1, 4),
        "replicates": st.integers(1, 2),
        "racing": st.sampled_from([None, {"max_replicates": 3}, {"max_replicates": 4, "confidence": 0.95, "sd": 0.01}]),
    },
)
BODIES: Mapping[str, SearchStrategy[Any]] = {
    "submit_search": _searches,
    "validate_search": _searches,
    "change_search": st.fixed_dictionaries({"budget": _budgets}),
    "add_trial": st.fixed_dictionaries({"theta": _thetas}),
    "describe_structure": st.fixed_dictionaries(
        {"theta": _thetas, "d_in": st.integers(1, 600), "d_out": st.integers(1, 600)},
        optional={"policy": st.sampled_from(["exact", "round"])},
    ),
    "add_webhook": st.fixed_dictionaries(
        {"url": st.just(HERE)},
        optional={"kinds": st.lists(st.sampled_from(["search.state", "trial.state"]), min_size=1, unique=True)},
    ),
}
"""Bodies that are accepted, which one that keeps to its schema need not be: the document does not know all rules."""


@dataclass(slots=True, kw_only=True)
class Target:
    """A service with something in it, and its document; ``accepted`` are the endpoints that have done what was asked."""

    rows: Rows
    app: FastAPI
    schema: BaseSchema
    headers: dict[str, str]
    accepted: set[str] = field(default_factory=set)
    _before: Everything | None = None

    @classmethod
    def of(cls, settings: Settings, rows: Rows, known: Known, *, key: str | None = None) -> Self:
        """A service with these settings; ``key`` comes with every request."""
        own = {"webhooks_to_private_addresses": True, "requests_per_minute": 10**6, "require_keys": key is not None}
        app = create_app(settings.model_copy(update=own))
        app.state.is_stopping = lambda: True  # streams of events end with what there is
        config = schemathesis.Config.from_dict(_config(known, keyed=key is not None))
        schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
        schema.hook(flatmap_case)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return cls(rows=rows, app=app, schema=schema, headers=headers)

    def attack(self, case: Case[Any]) -> Response:
        """Send a request; the answer keeps to the document, and a refusal has changed nothing."""
        self.prepare(case)
        response = case.call(headers=self.headers)
        self.check(case, response)
        case.validate_response(response, headers=self.headers, transport_kwargs={"headers": self.headers})
        return response

    def prepare(self, case: Case[Any]) -> None:
        """Know what there is before a request, which leads to no other machine."""
        stay_here(case)
        self._before = self._before or everything(self.rows.database)

    def check(self, case: Case[Any], response: Response) -> None:
        """What no document says: a refusal has changed nothing."""
        if response.status_code >= 400:
            assert everything(self.rows.database) == self._before, f"{case.as_curl_command()} changed something"
        else:
            self.accepted.add(name_of(case))
            self._before = None


def populate(rows: Rows) -> Known:
    """Searches in every state, trials in most of them, webhooks; their ids in the order in which they came."""
    known: Known = {parameter: [] for parameter in ("search_id", "trial_id", "webhook_id")}
    for state in SearchState:
        search_id = rows.search(state=state)
        known["search_id"].append(search_id)
        for name, loss in (("btt", 2.0), ("dense", 1.0), ("monarch", 3.0)):
            rows.outcome(rows.attempt(rows.trial(search_id, NAMED[name])), Outcome.completed(loss=loss, seconds=1.0))
        rows.progress(rows.attempt(rows.trial(search_id, NAMED["low-rank"])), point(1))
        rows.trial(search_id, NAMED["tensor-train"])
        known["trial_id"] += [f"{search_id}-{number}" for number in range(5)]
        with rows.database.write() as session:
            trials.exclude(session, f"{search_id}-2", "a mistake")
            hook = webhooks.register(session, LOCAL, url=HERE, kinds=["search.state"], search_id=search_id)
            known["webhook_id"].append(hook.id)
    return known


def new_key(rows: Rows, *scopes: Scope, owner: str = LOCAL.owner) -> str:
    """A key of an owner with these scopes."""
    with rows.database.write() as session:
        return keys.create(session, owner=owner, scopes=scopes)


def name_of(case: Case[Any]) -> str:
    """The name of the endpoint that a request is for."""
    return str(case.operation.definition.raw["operationId"])


def flatmap_case(context: HookContext, case: Case[Any]) -> SearchStrategy[Case[Any]]:
    """Every other body that keeps to its schema is replaced by one that is accepted too."""
    name = name_of(case)
    if name not in BODIES or case.meta is None or case.meta.generation.mode.is_negative:
        return st.just(case)
    return st.one_of(BODIES[name].map(lambda body: _with_body(case, body)), st.just(case))


def stay_here(case: Case[Any]) -> None:
    """No webhook leads to another machine, and no name is looked up."""
    if isinstance(case.body, dict) and isinstance(url := case.body.get("url"), str):
        try:
            case.body["url"] = str(addresses.parse(url).copy_with(host="127.0.0.1", port=9))
        except FieldError:
            return


def _with_body(case: Case[Any], body: Any) -> Case[Any]:
    case.body = body
    return case


def _config(known: Known, *, keyed: bool) -> dict[str, Any]:
    return {
        "base-url": "http://localhost",
        "analysis": {"constants": {"enabled": False}},  # not the code is tested, but what it says of itself
        "dictionaries": {parameter: {"values": ids} for parameter, ids in known.items()},
        "parameters": {f"path.{name}": {"dictionary": name, "probability": 0.85} for name in known},
        "generation": {"deterministic": FACTOR == 1, "with-security-parameters": False},
        "checks": {
            # A value may keep to its schema and break a rule that no schema can say: exponents sum to 1.
            "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "403", "404", "409", "422"]},
            "ignored_auth": {"enabled": keyed},
        },
    }
