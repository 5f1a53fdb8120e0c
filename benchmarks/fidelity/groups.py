"""The groups of the taxonomy against each other: whether the papers' order holds at the scale of a study."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtr, stdtrit

from einlayers.taxonomy import taxonomy
from einlayers.theta import Theta
from search.studies.estimates import Estimate

FULL, LOW_RANK, SHARED = "omega = 0, psi = 1", "psi < 1", "omega > 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """How much higher the log of the loss of one group is than that of another, on average over their structures: by seed,
    with the 95% interval and p-value of Student's t over seeds."""

    worse: str
    better: str
    difference: Estimate
    p_value: float
    same_sign: int
    num_seeds: int


def group_of(theta: Theta) -> str:
    """The group that decides how a structure scales, by 2410.02117 (section 4)."""
    place = taxonomy(theta)
    if place.omega > 0:
        return SHARED
    return FULL if place.psi >= 1 else LOW_RANK


def contrasts(finding: Mapping[str, Any]) -> Iterator[Contrast]:
    """Of every two groups of a scaling study, at its highest compute and the best rate of each structure."""
    groups: dict[str, list[list[float]]] = {}
    for each in finding["structures"]:
        losses = [math.log(loss) for loss in each["frontier"][-1]["losses"]]
        groups.setdefault(group_of(Theta(**each["theta"])), []).append(losses)
    for worse, better in ((LOW_RANK, FULL), (SHARED, FULL), (SHARED, LOW_RANK)):
        if worse in groups and better in groups:
            yield _contrast(worse, better, _by_seed(groups[worse]), _by_seed(groups[better]))


def _by_seed(losses_SR: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(losses) for losses in zip(*losses_SR, strict=True)]


def _contrast(worse: str, better: str, first: Sequence[float], second: Sequence[float]) -> Contrast:
    differences = [a - b for a, b in zip(first, second, strict=True)]
    num, mean = len(differences), fmean(differences)
    error = stdev(differences) / math.sqrt(num)
    margin = float(stdtrit(num - 1, 0.975)) * error
    return Contrast(
        worse=worse,
        better=better,
        difference=Estimate(value=mean, low=mean - margin, high=mean + margin),
        p_value=2 * float(stdtr(num - 1, -abs(mean) / error)),
        same_sign=sum(difference > 0 for difference in differences),
        num_seeds=num,
    )
