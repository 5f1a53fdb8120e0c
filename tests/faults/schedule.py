"""What a soak does, and in which order: made from a seed before anything runs, so that a soak can be repeated."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LIGHT: Mapping[str, float] = {
    "kill a slot": 5,
    "kill a runner": 4,
    "freeze a runner beyond its lease": 2,
    "kill the API": 3,
    "client gone within its request": 1,
    "client gone before the answer": 1,
    "client gone while it follows": 1,
    "client gone within an export": 1,
}
"""How often each fault is drawn, one against another; what a service survives within a few leases."""

HEAVY: Mapping[str, float] = {"kill Ray's GCS": 0.2, "kill the raylet": 0.2, "kill Ray's head": 0.2}
"""Those that cost a new cluster, and with it most of a minute on a busy machine."""

OF_POSTGRES: Mapping[str, float] = {"kill Postgres": 2}

ACTIONS: Mapping[str, float] = {
    "enqueue a structure": 3,
    "pause, and let trials end": 2,
    "pause, and write checkpoints": 3,
    "extend the budget": 2,
    "cancel": 1,
}
"""What users do meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A fault, and the action before it if there is one; ``pick`` and ``action_pick`` choose among what there is then."""

    fault: str
    pick: int
    action: str | None
    action_pick: int


def make_schedule(seed: int, number: int, faults: Mapping[str, float]) -> list[Step]:
    """So many steps; each of the faults is among them, if there is room."""
    rng = random.Random(f"faults {seed}")
    drawn = [*faults, *rng.choices(list(faults), list(faults.values()), k=max(0, number - len(faults)))]
    rng.shuffle(drawn)
    return [
        Step(
            fault=fault,
            pick=rng.randrange(1 << 30),
            action=rng.choices(list(ACTIONS), list(ACTIONS.values()))[0] if rng.random() < 0.5 else None,
            action_pick=rng.randrange(1 << 30),
        )
        for fault in drawn[:number]
    ]


def make_search(seed: int, number: int) -> dict[str, Any]:
    """The search with this number: short, and each a little different."""
    rng = random.Random(f"search {seed} {number}")
    train_flops = rng.choice([2e8, 1e9, 1e10])
    trials = rng.randint(2, 5)
    budgets: Sequence[dict[str, float]] = [{"max_trials": trials}, {"max_train_flops": trials * train_flops}]
    return {
        "name": f"soak {number}",
        "budget": rng.choice(budgets),
        "space": {"seeds": rng.choice([[], ["dense", "monarch"]])},
        "proxy": {"train_flops": train_flops},
        "sampler": {"kind": rng.choice(["tpe", "random"]), "seed": rng.randrange(1000)},
        "replicates": rng.choice([1, 1, 2]),
        "concurrency": rng.randint(1, 2),
    }
