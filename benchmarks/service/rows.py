"""Searches with very many trials, written in bulk: as the service would have written them, but in seconds."""

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from typing import Any

from sqlalchemy import insert

from search.proxies.char_lm import CharLM
from search.proxies.identity import task_digest
from search.space import SUBSPACES
from search.spec import Budget, SearchSpec
from search.states import AttemptState, SearchState, TrialState
from search.structure import Structure, structure_of
from service.database import Database
from service.models import Attempt, Base, Measurement, Origin, Result, Search, Trial

_PROXY = CharLM(train_flops=1e9, base_lr=5e-3)
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_CHUNK = 5_000
_NUM_POINTS = 12

Row = dict[str, Any]


def fill(database: Database, num_trials: int, *, num_small: int = 200, size_of_small: int = 20) -> str:
    """One search with ``num_trials`` trials and many small ones; the id of the first.

    One trial in fifty diverged, one in ten has a learning curve. Their structures are a few hundred real ones, each with a
    size of its own, so that no two are equal.
    """
    draw = random.Random(0)
    ids = [f"{number:012x}" for number in range(1, num_small + 2)]
    for number, search_id in enumerate(ids):
        size = size_of_small if number else num_trials
        trials = (_trial(draw, search_id, place) for place in range(size))
        with database.write() as session:
            session.execute(insert(Search), [_search(number, search_id, size)])
            while chunk := list(islice(trials, _CHUNK)):
                for table, rows in _with_all_below(chunk):
                    if rows:
                        session.execute(insert(table), rows)
    return ids[0]


@cache
def _structures() -> Sequence[Structure]:
    draw, space = random.Random(0), SUBSPACES["full"]
    units = [tuple(draw.random() for _ in range(space.num_coordinates)) for _ in range(400)]
    return [structure_of(space.to_theta(unit), _PROXY) for unit in units]


def _search(number: int, search_id: str, num_trials: int) -> Row:
    spec = SearchSpec(name=f"benchmark {number}", budget=Budget(max_trials=num_trials), proxy=_PROXY)
    return {
        "id": search_id,
        "name": spec.name,
        "owner": "local",
        "spec": spec,
        "proxy_kind": spec.proxy.kind,
        "task": task_digest(spec.proxy),
        "state": SearchState.COMPLETED,
        "state_since": _BEGIN,
        "counts": {TrialState.COMPLETED: num_trials - num_trials // 50, TrialState.INFEASIBLE: num_trials // 50},
        "best_loss": 2.0,
        "train_flops": num_trials * spec.proxy.train_flops,
        "last_event": 3 * num_trials,
        "created_at": _BEGIN + timedelta(seconds=number),
    }


def _trial(draw: random.Random, search_id: str, number: int) -> Row:
    structure, scale = draw.choice(_structures()), draw.uniform(0.5, 1.0)
    diverged = number % 50 == 49
    loss = 2 + 0.2 * draw.random() + (structure.cost.macs * scale / 1000) ** -0.5
    return {
        "id": f"{search_id}-{number}",
        "search_id": search_id,
        "number": number,
        "replicate": 0,
        "origin": Origin.USER if number % 1000 == 7 else Origin.SEARCH,
        "theta": structure.theta,
        "family": structure.family,
        "width": structure.width,
        "digest": f"{draw.getrandbits(128):032x}",
        "omega": structure.taxonomy.omega,
        "psi": structure.taxonomy.psi,
        "nu": structure.taxonomy.nu,
        "params": int(structure.cost.params * scale),
        "macs": int(structure.cost.macs * scale),
        "train_flops": _PROXY.train_flops,
        "base_lr": _PROXY.base_lr,
        "seed": number,
        "history_size": number,
        "state": TrialState.INFEASIBLE if diverged else TrialState.COMPLETED,
        "reason": "the loss is not finite at step 7" if diverged else None,
        "state_since": _BEGIN,
        "changed": 3 * number + 3,
        "loss": None if diverged else loss,
        "seconds": draw.uniform(5.0, 20.0),
        "finish_order": number,
        "created_at": _BEGIN,
        "finished_at": _BEGIN,
    }


def _with_all_below(trials: Sequence[Row]) -> Iterator[tuple[type[Base], list[Row]]]:
    yield Trial, list(trials)
    yield Attempt, [_attempt(trial) for trial in trials]
    yield Result, [_result(trial) for trial in trials if trial["loss"] is not None]
    measured = [trial for trial in trials if trial["number"] % 10 == 0]
    yield Measurement, [_point(trial, step) for trial in measured for step in range(_NUM_POINTS)]


def _attempt(trial: Row) -> Row:
    return {
        "id": f"{trial['id']}-1",
        "trial_id": trial["id"],
        "number": 1,
        "slot": f"slot-{trial['number'] % 8}",
        "runner_id": "benchmark",
        "epoch": 1,
        "state": AttemptState.ENDED,
        "seconds": trial["seconds"],
        "started_at": _BEGIN,
        "finished_at": _BEGIN,
    }


def _result(trial: Row) -> Row:
    own = {name: trial[name] for name in ("search_id", "digest", "changed")}
    return {**own, "trial_id": trial["id"], "num_trials": 1, "loss_mean": trial["loss"], "loss_m2": 0.0}


def _point(trial: Row, step: int) -> Row:
    amounts = {"examples": 512 * step, "train_flops": 1e8 * step, "loss": 5.0 / (1 + step) + 2}
    return {"attempt_id": f"{trial['id']}-1", "step": step, **amounts}
