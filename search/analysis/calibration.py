"""The analysis of a calibration: the learning rate with the lowest mean loss."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from einlayers.errors import FieldError
from search.studies.base import Measured
from search.studies.calibration import Calibrated, Calibration, SweepPoint


def analyse(study: Calibration, measured: Mapping[str, Sequence[Measured]]) -> Calibrated:
    """The best of the rates and warm-ups.

    Raises:
        FieldError: every one of them diverged.
    """
    num_rates = len(study.rates)
    sweep = tuple(
        _point(rate, warmup, [run.loss for run in runs[i::num_rates]])
        for warmup, runs in zip(study.warmup_steps, measured.values(), strict=True)
        for i, rate in enumerate(study.rates)
    )
    best = min(sweep, key=lambda point: math.inf if point.loss is None else point.loss)
    if best.loss is None:
        raise FieldError("learning_rates", expected="one at which the dense model can be trained", got=study.rates)
    return Calibrated(
        base_lr=best.base_lr,
        warmup_steps=best.warmup_steps,
        loss=best.loss,
        bracketed=study.rates[0] < best.base_lr < study.rates[-1],
        sweep=sweep,
    )


def _point(rate: float, warmup: int, losses: Sequence[float]) -> SweepPoint:
    finite = all(map(math.isfinite, losses))
    return SweepPoint(
        base_lr=rate,
        warmup_steps=warmup,
        losses=tuple(loss if math.isfinite(loss) else None for loss in losses),
        loss=fmean(losses) if finite else None,
    )
