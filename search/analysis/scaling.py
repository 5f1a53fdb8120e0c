"""The analysis of a scaling study: frontiers, laws with intervals from a bootstrap over runs, multipliers."""

# R replicates, K levels of compute

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from scipy.special import ndtri, stdtrit

from search.analysis.frontier import Candidate, by_structure, candidates_of, frontier_of, levels_below
from search.analysis.power_laws import fit_power_laws, fit_size_laws
from search.studies.base import Measured
from search.studies.baseline import DenseFrontier
from search.studies.estimates import Estimate
from search.studies.laws import PowerLaw, SizeLaw
from search.studies.scaling import FittedPowerLaw, FittedSizeLaw, Scaling, ScalingStudy, StructureScaling

Law = TypeVar("Law", PowerLaw, SizeLaw)

NUM_DRAWS = 100
"""How often the runs of a structure are drawn anew, for each of its laws."""

_LEVEL = 0.95
_MIN_SIZES = 3
"""Over fewer sizes nobody can tell what the loss owes to the parameters."""


def analyse(study: ScalingStudy, measured: Mapping[str, Sequence[Measured]]) -> Scaling:
    """What the structures follow, and what they are worth against dense.

    Raises:
        FieldError: a structure could not be trained from every seed at any width and rate.
    """
    most, least = max(study.compute_factors), min(study.compute_factors)
    levels_K = levels_below(most * study.proxy.train_flops, least * study.proxy.train_flops)
    found = {
        theta: candidates_of(runs, levels_K)
        for theta, runs in by_structure([*measured.get("dense", ()), *measured.get("structures", ())]).items()
    }
    dense = DenseFrontier(points=frontier_of(found[study.thetas[0]], levels_K))
    structures = []
    for theta in study.thetas:
        candidates = [each for each in found[theta] if np.isfinite(each.mean_K).any()]
        frontier = frontier_of(candidates, levels_K)
        last = frontier[-1]
        tried = {each.lr_mult for each in candidates if each.width == last.width}
        structures.append(
            StructureScaling(
                theta=theta,
                frontier=frontier,
                power_law=_power_law(candidates, levels_K),
                size_law=_size_law(candidates, levels_K),
                multipliers=tuple(dense.multiplier(point.losses, point.train_flops) for point in frontier),
                bracketed=last.bracketed and (len(tried) == 1 or min(tried) < last.lr_mult < max(tried)),
            )
        )
    return Scaling(structures=tuple(structures), lr_tuned=len(study.lr_mults) > 1)


def _power_law(candidates: Sequence[Candidate], levels_K: np.ndarray) -> FittedPowerLaw:
    def fit(samples: Sequence[Sequence[Candidate]], near: PowerLaw | None) -> Sequence[PowerLaw]:
        frontiers = [frontier_of(sample, levels_K) for sample in samples]
        losses = [[math.exp(point.log_loss) for point in frontier] for frontier in frontiers]
        return fit_power_laws(levels_K.tolist(), losses, near=near)

    law, estimates = _with_intervals(fit, candidates, ("exponent", "irreducible"))
    return FittedPowerLaw(law=law, **estimates)


def _size_law(candidates: Sequence[Candidate], levels_K: np.ndarray) -> FittedSizeLaw | None:
    """Of the best rate of every width; None over too few sizes."""
    best = _best_rates(candidates)
    if len({each.width for each in best}) < _MIN_SIZES:
        return None
    points = [(i, k) for i, each in enumerate(best) for k in np.flatnonzero(np.isfinite(each.mean_K)).tolist()]
    params = [float(best[i].params) for i, _ in points]
    data = [float(levels_K[k]) / (6 * best[i].macs) for i, k in points]

    def fit(samples: Sequence[Sequence[Candidate]], near: SizeLaw | None) -> Sequence[SizeLaw]:
        means = [[each.mean_K for each in sample] for sample in samples]
        losses = [[math.exp(mean[i][k]) for i, k in points] for mean in means]
        return fit_size_laws(params, data, losses, near=near)

    law, estimates = _with_intervals(fit, best, ("params_exponent", "data_exponent", "irreducible"))
    return FittedSizeLaw(law=law, **estimates)


def _with_intervals(
    fit: Callable[[Sequence[Sequence[Candidate]], Law | None], Sequence[Law]],
    candidates: Sequence[Candidate],
    names: Sequence[str],
) -> tuple[Law, dict[str, Estimate]]:
    """The law of all runs, and intervals of these numbers of it, from fits to runs drawn anew."""
    (law,) = fit([candidates], None)
    drawn = fit(_samples(candidates), law)
    interval = _intervals(candidates)
    return law, {name: interval(getattr(law, name), [getattr(each, name) for each in drawn]) for name in names}


def _best_rates(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of each width and budget the candidate that ends best."""
    best: dict[tuple[int, int], Candidate] = {}
    for each in candidates:
        key = each.width, each.last
        if key not in best or each.mean_K[each.last] < best[key].mean_K[each.last]:
            best[key] = each
    return list(best.values())


def _samples(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """The candidates with runs drawn anew, with replacement."""
    draw = np.random.default_rng(0)
    return [
        [
            replace(each, log_losses_RK=each.log_losses_RK[draw.integers(0, num, size=num)])
            for each in candidates
            for num in [len(each.log_losses_RK)]
        ]
        for _ in range(NUM_DRAWS)
    ]


def _intervals(candidates: Sequence[Candidate]) -> Callable[[float, Sequence[float]], Estimate]:
    """The interval of a positive number from what it was in the samples, in logarithms.

    A bootstrap of R runs sees a variance that is (R - 1) / R of the truth, and a normal quantile ignores how few they are.
    """
    replicates = len(candidates[0].log_losses_RK)
    freedom = (replicates - 1) * len(candidates)
    wider = float(stdtrit(freedom, (1 + _LEVEL) / 2) / ndtri((1 + _LEVEL) / 2)) * math.sqrt(
        replicates / (replicates - 1)
    )

    def interval(value: float, drawn: Sequence[float]) -> Estimate:
        # Weibull's places: by the usual ones, fewer than 95% of new draws fall between the quantiles of a hundred.
        ends = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
        low, high = np.quantile(np.log(drawn), ends, method="weibull") - math.log(value)
        return Estimate(
            value=value, low=value * math.exp(wider * min(0.0, low)), high=value * math.exp(wider * max(0.0, high))
        )

    return interval
