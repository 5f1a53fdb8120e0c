"""The analysis of a calibration: the learning rate at which the mean loss is lowest, between the rates that were tried."""

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
        base_lr=_lowest([point for point in sweep if point.warmup_steps == best.warmup_steps], best),
        warmup_steps=best.warmup_steps,
        loss=best.loss,
        bracketed=study.rates[0] < best.base_lr < study.rates[-1],
        sweep=sweep,
    )


def _lowest(sweep: Sequence[SweepPoint], best: SweepPoint) -> float:
    """Where a parabola through the best rate and its two neighbours is lowest, in logarithms of rate and loss: with steps of
    two and the noise of a few seeds, which of two neighbours is the better one is often a matter of luck."""
    place = sweep.index(best)
    points = [
        (math.log(each.base_lr), math.log(each.loss)) for each in sweep[max(0, place - 1) : place + 2] if each.loss
    ]
    if len(points) < 3:
        return best.base_lr
    (x0, y0), (x1, y1), (x2, y2) = points
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    if left == right:
        return best.base_lr
    return math.exp((x0 + x1) / 2 - left * (x2 - x0) / (2 * (right - left)))


def _point(rate: float, warmup: int, losses: Sequence[float]) -> SweepPoint:
    finite = all(map(math.isfinite, losses))
    return SweepPoint(
        base_lr=rate,
        warmup_steps=warmup,
        losses=tuple(loss if math.isfinite(loss) else None for loss in losses),
        loss=fmean(losses) if finite else None,
    )
