"""Searches in words, as the command line says them everywhere."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from einlayers.theta import Theta
from einsearch.answers import Search


def state_of(search: Search) -> str:
    """The state of a search with its reason."""
    return f"{search['state']} ({search['reason']})" if search["reason"] else search["state"]


def trials_of(search: Search) -> str:
    """The trials that have ended, and what the budget pays for: other trials, and seconds."""
    done, max_seconds = search["progress"], search["spec"]["budget"].get("max_seconds")
    limit = "" if done["max_trials"] is None else f"/{done['max_trials']}"
    time = "" if max_seconds is None else f" in {duration(done['seconds'])}/{duration(max_seconds)}"
    return f"{done['finished']}{limit}{time}"


_UNITS = {
    "char_lm": ("token", "nats per token"),
    "image_mlp": ("image", "nats per image"),
    "image_vit": ("image", "nats per image"),
    "next_pixel": ("pixel", "nats per pixel"),
    "regression": ("row", "variances of the teacher"),
}


def units_of(search: Search) -> tuple[str, str]:
    """What an example of the search's proxy is, and what its loss is measured in."""
    return _UNITS.get(search["spec"]["proxy"]["kind"], ("example", "the units of the proxy"))


def fidelity_of(search: Search) -> str:
    """How far the order that the search's proxy gives can be trusted, if that was measured."""
    fidelity = search["fidelity"]
    if fidelity == "unmeasured":
        return "unmeasured"
    seeds, truth = (fidelity[name] for name in ("between_seeds", "against_reference"))
    verdict = "truthful" if fidelity["truthful"] else "NOT truthful"
    shown = "{value:.2f} [{low:.2f}, {high:.2f}]"
    return f"{verdict}; Spearman between seeds {shown.format_map(seeds)}, with the truth {shown.format_map(truth)}"


def variant_of(variant: Mapping[str, Any] | None) -> str:
    """What a trial changes of the model of its search's proxy, if anything."""
    given = variant or {}
    numbers = ((given.get("num_experts"), "experts"), (given.get("top_k"), "active"))
    thetas = ((group, theta) for group, theta in (given.get("thetas") or {}).items() if theta)
    said = [f"{number} {what}" for number, what in numbers if number is not None]
    return ", ".join([*said, *(f"{group.replace('_', '-')} {Theta(**theta)}" for group, theta in thetas)])


def loss_of(loss: float | None) -> str:
    """A loss, if there is one yet."""
    return "-" if loss is None else f"{loss:.4f}"


def probability_of(probability: float) -> str:
    """A probability, never said to be none or all of it."""
    return "over 0.99" if probability > 0.99 else "under 0.01" if probability < 0.01 else f"of {probability:.2f}"


def duration(seconds: float) -> str:
    """Seconds as a clock shows them."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def local_time(text: str, shown: str = "%Y-%m-%d %H:%M") -> str:
    """A time of the API's, as the clock on this wall shows it."""
    return datetime.fromisoformat(text).astimezone().strftime(shown)
