"""Searches and trials written straight into their tables, with any values: lists and rankings do not ask how they came."""

from datetime import UTC, datetime
from typing import Any

from einlayers.theta import NAMED
from search.spec import SearchSpec
from search.states import SearchState, TrialState
from service.models import Origin, Search, Trial
from tests.rows import SPEC

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def plain_search(identifier: str, spec: SearchSpec = SPEC, **values: Any) -> Search:
    """A search that runs since noon, but for these values."""
    defaults = {"owner": "local", "state": SearchState.RUNNING, "created_at": NOON, "state_since": NOON}
    columns = {**defaults, "proxy_kind": spec.proxy.kind, "task": "task", "name": spec.name, **values}
    return Search(id=identifier, spec=spec, **columns)


def plain_trial(search_id: str, number: int, **values: Any) -> Trial:
    """A trial of a structure of its own that completed at noon, but for these values."""
    columns = {
        "replicate": 0,
        "origin": Origin.SEARCH,
        "theta": NAMED["btt"],
        "family": "btt",
        "width": 8,
        "digest": f"{number:032x}",
        **{"omega": 0.0, "psi": 1.0, "nu": 0.5, "params": 1, "macs": 1},
        **{"train_flops": 1e6, "base_lr": 0.005, "seed": number, "history_size": number},
        **{"state": TrialState.COMPLETED, "loss": 1.0, "seconds": 1.0},
        **{"changed": 0, "alone": False, "created_at": NOON, "state_since": NOON},
        **values,
    }
    return Trial(id=f"{search_id}-{number}", search_id=search_id, number=number, **columns)
