"""The analysis of a transfer check: sweeps of the learning rate, and the features, over widths."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from search.analysis.frontier import by_structure
from search.studies.base import Measured
from search.studies.transfer import FeatureSpread, StructureTransfer, Transfer, TransferCheck, WidthSweep

_NEGLIGIBLE, _FLAT = StructureTransfer.NEGLIGIBLE, StructureTransfer.FLAT


def analyse(study: TransferCheck, measured: Mapping[str, Sequence[Measured]]) -> Transfer:
    """Whether the rate transfers to each structure."""
    return Transfer(structures=tuple(_structure(runs) for runs in by_structure(measured["sweep"]).values()))


def _structure(runs: Sequence[Measured]) -> StructureTransfer:
    widths = sorted({run.width for run in runs})
    sweeps = tuple(_sweep([run for run in runs if run.width == width]) for width in widths)
    coordinates = _coordinates([run for run in runs if run.run.lr_mult == 1.0])
    near = all(_is_near(sweep) for sweep in sweeps)
    flat = all(spread.updates is not None and spread.updates <= _FLAT for spread in coordinates.values())
    return StructureTransfer(theta=runs[0].run.theta, sweeps=sweeps, coordinates=coordinates, transfers=near and flat)


def _is_near(sweep: WidthSweep) -> bool:
    return 0.5 <= sweep.best_lr_mult <= 2.0 or (sweep.regret is not None and sweep.regret <= _NEGLIGIBLE)


def _sweep(runs: Sequence[Measured]) -> WidthSweep:
    mults = sorted({run.run.lr_mult for run in runs if run.run.lr_mult is not None})
    losses = {mult: fmean(run.loss for run in runs if run.run.lr_mult == mult) for mult in mults}
    best = min(losses, key=lambda mult: losses[mult])
    return WidthSweep(
        width=runs[0].width,
        losses={mult: loss if math.isfinite(loss) else None for mult, loss in losses.items()},
        best_lr_mult=best,
        regret=math.log(losses[1.0] / losses[best]) if math.isfinite(losses[1.0]) else None,
    )


def _coordinates(runs: Sequence[Measured]) -> dict[str, FeatureSpread]:
    widths = sorted({run.width for run in runs})
    kinds = sorted(set.intersection(*(set(run.coordinates) for run in runs)))
    found = {}
    for kind in kinds:
        at_width = [[run.coordinates[kind] for run in runs if run.width == width] for width in widths]
        found[kind] = FeatureSpread(
            features=_spread([fmean(each.features for each in group) for group in at_width]),
            updates=_spread([fmean(each.updates for each in group) for group in at_width]),
        )
    return found


def _spread(values: Sequence[float]) -> float | None:
    return max(values) / min(values) if min(values) > 0 else None
