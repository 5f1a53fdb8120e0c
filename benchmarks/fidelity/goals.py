"""What the proxies are held to, and whether they keep it: every bound beside what was measured."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.fidelity.coverage import NUM_DRAWS

Finding = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound, what was measured, and whether that keeps it."""

    what: str
    measured: str
    bound: str
    is_met: bool


GoalsOf = Callable[[Finding], Iterator[Goal]]


def goals(found: Mapping[str, Finding], covered: Mapping[str, int]) -> Iterator[Goal]:
    """The goals of all studies that have a finding, and of the intervals of laws, by how many of them held the truth."""
    for name, goals_of in _GOALS.items():
        if name in found:
            yield from goals_of(found[name])
    for name, hits in covered.items():
        yield _at_least(f"synthetic runs: intervals that hold the truth, {name}", hits, 0.9 * NUM_DRAWS, ".0f")


def _standard(found: Finding) -> Iterator[Goal]:
    yield from _between_seeds("standard", found, 0.90, lowest=0.85)
    yield _at_most("standard: CPU-seconds a trial", found["cpu_seconds"], 12, ".1f")
    yield _at_least("standard: Spearman with four times the compute", _truth(found), 0.85)
    yield _at_most("standard: sd of the log of the loss", found["sd"], 0.02, ".3f")


def _screening(found: Finding) -> Iterator[Goal]:
    yield from _between_seeds("screening", found, 0.85)
    if (of_three := found["between_means"].get("3")) is not None:
        yield _at_least("screening: Spearman between means of 3 replicates", of_three, 0.95)
    yield _at_most("screening: CPU-seconds a trial", found["cpu_seconds"], 5, ".1f")
    yield _at_least("screening: Spearman with four times the compute", _truth(found), 0.75)
    yield _at_most("screening: sd of the log of the loss", found["sd"], 0.03, ".3f")


def _random(found: Finding) -> Iterator[Goal]:
    what = f"{len(found['structures'])} random structures"
    yield from _between_seeds(what, found, 0.80)
    yield _at_most(f"{what}: CPU-seconds a trial", found["cpu_seconds"], 8, ".1f")
    yield _at_least(f"{what}: of the best four, in every seed's best four", found["top_overlap"], 3, "d")


def _text(name: str, bound: float) -> GoalsOf:
    def agrees(found: Finding) -> Iterator[Goal]:
        yield _at_least(f"{name}: Spearman with the character GPT", _truth(found), bound)

    return agrees


def _control(name: str) -> GoalsOf:
    def rejected(found: Finding) -> Iterator[Goal]:
        why = f"Spearman {_truth(found):.2f}, compute apart by a factor of {found['compute_spread']:.1f}"
        yield Goal(
            what=f"{name}: the check of truth refuses it",
            measured=f"{'accepted' if found['truthful'] else 'refused'}: {why}",
            bound="refused",
            is_met=not found["truthful"],
        )

    return rejected


def _multipliers(found: Finding) -> Iterator[Goal]:
    widest = max(_half_width(each["multipliers"][-1]) for each in found["structures"][1:])
    yield _at_most("tuned multipliers from 4 seeds: the widest 95% interval, as a factor", widest, 1.3)


_GOALS: Mapping[str, GoalsOf] = {
    "standard": _standard,
    "screening": _screening,
    "random": _random,
    "standard against text": _text("standard", 0.80),
    "random against text": _text("random structures", 0.60),
    "control: fixed width": _control("one width for all"),
    "control: equal steps": _control("equal steps"),
    "control: equal steps, random structures": _control("equal steps, random structures"),
    "the papers' order": _multipliers,
}
"""By the names of the studies."""


def _between_seeds(name: str, found: Finding, bound: float, lowest: float | None = None) -> Iterator[Goal]:
    seeds = found["between_seeds"]
    yield _at_least(f"{name}: Spearman between two seeds", seeds["spearman"]["value"], bound)
    if lowest is not None:
        yield _at_least(f"{name}: Spearman of the two seeds that agree least", seeds["lowest_spearman"], lowest)


def _truth(found: Finding) -> float:
    value: float = found["against_reference"]["spearman"]["value"]
    return value


def _half_width(estimate: Mapping[str, float]) -> float:
    return math.sqrt(estimate["high"] / estimate["low"])


def _at_least(what: str, measured: float, bound: float, form: str = ".2f") -> Goal:
    return Goal(what=what, measured=f"{measured:{form}}", bound=f"at least {bound:g}", is_met=measured >= bound)


def _at_most(what: str, measured: float, bound: float, form: str = ".2f") -> Goal:
    return Goal(what=what, measured=f"{measured:{form}}", bound=f"at most {bound:g}", is_met=measured <= bound)
