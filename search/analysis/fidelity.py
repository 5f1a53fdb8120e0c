"""The analysis of a fidelity study: rank correlations between seeds, budgets, widths, and with the truth."""

# S structures, R replicates

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from search.analysis.ranks import Losses, agreement, between_means, correlation, spearman, top_overlap
from search.studies.base import Measured
from search.studies.estimates import Correlation
from search.studies.fidelity import Fidelity, FidelityStudy, StructureFidelity

_BEST = 4
_QUARTER = 0.25


def analyse(study: FidelityStudy, measured: Mapping[str, Sequence[Measured]]) -> Fidelity:
    """What the runs of the study's parts, in the order in which they were planned, say about its proxy."""
    runs = measured["proxy"]
    losses_SR = _by_structure([run.loss for run in runs], study.replicates)
    quarter_SR = _by_structure([_loss_at(run, _QUARTER) for run in runs], study.replicates)
    truth_S = _truth(study, measured)
    neighbours = measured.get("neighbours")
    against = correlation(_means(losses_SR), truth_S)
    seconds = [run.cpu_seconds for run in runs]
    structures = _structures(study, runs, losses_SR, truth_S, neighbours)
    compute = [run.train_flops for run in runs]
    spread = max(compute) / min(compute)
    return Fidelity(
        structures=structures,
        between_seeds=agreement(losses_SR),
        between_means={k: between_means(losses_SR, k) for k in range(1, study.replicates // 2 + 1)},
        between_budgets=correlation(_means(quarter_SR), _means(losses_SR)),
        between_widths=_between_widths(neighbours) if neighbours else None,
        against_reference=against,
        single_against_reference=fmean(spearman(losses_S, truth_S) for losses_S in losses_SR.T),
        top_overlap=top_overlap(losses_SR, _BEST),
        sd=_pooled([each.sd for each in structures if each.sd is not None]),
        compute_spread=spread,
        cpu_seconds=fmean(seconds),
        highest_cpu_seconds=max(seconds),
        truthful=against.spearman.value >= Fidelity.TRUTHFUL and spread <= Fidelity.EQUAL_COMPUTE,
    )


def _truth(study: FidelityStudy, measured: Mapping[str, Sequence[Measured]]) -> Losses:
    """The losses on the reference, of the best width where there are several."""
    truth_S = _means(_by_structure([run.loss for run in measured["reference"]], study.reference_replicates))
    if beside := measured.get("reference_neighbours"):
        losses_S2 = np.array([run.loss for run in beside]).reshape(-1, 2)
        truth_S = np.minimum(truth_S, losses_S2.min(axis=1))
    return truth_S


def _structures(
    study: FidelityStudy,
    runs: Sequence[Measured],
    losses_SR: Losses,
    truth_S: Losses,
    neighbours: Sequence[Measured] | None,
) -> tuple[StructureFidelity, ...]:
    num = len(runs) // study.replicates
    return tuple(
        StructureFidelity(
            theta=runs[s].run.theta,
            width=runs[s].width,
            loss=_finite(losses_SR[s].mean()),
            sd=_finite(np.log(losses_SR[s]).std(ddof=1)) if np.isfinite(losses_SR[s]).all() else None,
            reference_loss=_finite(truth_S[s]),
            cpu_seconds=fmean(run.cpu_seconds for run in runs[s::num]),
            bracketed=_is_best(losses_SR[s].mean(), neighbours[2 * s : 2 * s + 2]) if neighbours else None,
        )
        for s in range(num)
    )


def _pooled(sds: Sequence[float]) -> float:
    return math.sqrt(fmean(sd**2 for sd in sds)) if sds else 0.0


def _is_best(loss: float, neighbours: Sequence[Measured]) -> bool:
    return all(loss <= neighbour.loss for neighbour in neighbours)


def _between_widths(neighbours: Sequence[Measured]) -> Correlation:
    losses_S2 = np.array([run.loss for run in neighbours]).reshape(-1, 2)
    return correlation(losses_S2[:, 0], losses_S2[:, 1])


def _by_structure(values: Sequence[float], replicates: int) -> Losses:
    """``(S, R)``, of values that run over all structures, once for each replicate."""
    return np.array(values, dtype=np.float64).reshape(replicates, -1).T


def _means(losses_SR: Losses) -> Losses:
    return np.asarray(losses_SR.mean(axis=1))


def _loss_at(run: Measured, share: float) -> float:
    """The loss at a share of the run's budget, of the point of its curve that is nearest."""
    if not np.isfinite(run.loss):
        return run.loss
    return min(run.curve, key=lambda point: abs(np.log(point.train_flops / (share * run.train_flops)))).loss


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
