"""Answers of the API in whole, to be changed where a test wants another."""

from typing import Any

PROGRESS: dict[str, Any] = {
    "max_trials": 4,
    "finished": 1,
    "counts": {"COMPLETED": 1, "RUNNING": 1},
    "best_loss": 2.5,
    "seconds": 30.0,
    "train_flops": 2e9,
    "num_retries": 0,
    "num_reused": 0,
}


def search(**fields: Any) -> dict[str, Any]:
    """A search that runs."""
    budget = fields.pop("budget", {"max_trials": 4, "max_seconds": None, "max_train_flops": None, "max_failures": 10})
    progress = PROGRESS | fields.pop("progress", {})
    return {
        "id": "5f0c2ab91d3e",
        "name": "first",
        "owner": "local",
        "state": "RUNNING",
        "reason": None,
        "state_since": "2026-01-01T00:00:00Z",
        "pause_mode": None,
        "waiting_for": None,
        "runner_id": "0123456789ab",
        "progress": progress,
        "last_event": 3,
        "spec": {"name": "first", "budget": budget, "proxy": {"kind": "char_lm"}},
        "fidelity": "unmeasured",
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": "2026-01-01T00:00:00Z",
        "finished_at": None,
        **fields,
    }


def ranked(
    rank: int, *, multiplier: dict[str, float] | None = None, better_than_next: float | None = None, **trial: Any
) -> dict[str, Any]:
    """A structure at its place, trained once."""
    theta = {"alpha": 0.5, "beta": 0.0, "gamma": 0.5, "delta": 0.0, "epsilon": 0.5, "phi": 0.5, "rho": 0.0}
    own = {
        "family": "monarch",
        "theta": theta,
        "omega": 0.0,
        "psi": 1.0,
        "nu": 0.5,
        "width": 40,
        "params": 19_440,
        "macs": 23_040,
        "seed": 7,
        "loss": 2.0,
        "transfers": None,
        **trial,
    }
    return {
        "rank": rank,
        "loss": own["loss"],
        "loss_sd": None,
        "better_than_next": better_than_next,
        "trial": own,
        "replicates": [own],
        "multiplier": multiplier,
    }


def best(*items: dict[str, Any], confidence: float | None = None) -> dict[str, Any]:
    """The best structures of that search."""
    return {"items": items, "confidence": confidence}


def event(number: int, kind: str = "trial.progress", /, **data: Any) -> dict[str, Any]:
    """An event of that search."""
    trial_id = "5f0c2ab91d3e-0" if kind.startswith("trial") else None
    return {
        "number": number,
        "kind": kind,
        "search_id": "5f0c2ab91d3e",
        "trial_id": trial_id,
        "at": "2026-01-01T00:00:00Z",
        "data": data,
    }
