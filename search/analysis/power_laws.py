"""Loss as a function of compute, or of model and data size: saturating power laws, fitted robustly, with their domain.

    L(C) = E + A C^-b                    along the frontier of compute-optimal runs
    L(N, D) = E + A N^-alpha + B D^-beta      over all runs (2203.15556, approach 3)

Fitted by the Huber loss of the residuals of log L from many starts, with E fitted too, because an irreducible loss set by
hand moves the exponents. The answers say where the runs were: a law knows nothing outside of what it was fitted to.
"""

# S sets of losses, P points, K parameters, M starts

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from einlayers.errors import FieldError
from search.analysis.robust_fits import Predict, Values, fit_robustly
from search.studies.laws import PowerLaw, Range, SizeLaw

HUBER_DELTA = 1e-2
"""Residuals of log L beyond this count linearly: about the noise between seeds, so that what is worse than noise weighs
less."""

_BOUND = 60.0
"""Of the logarithms of all constants."""


def fit_power_law(compute: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The saturating power law through points.

    Raises:
        FieldError: there are fewer than 4 points, or a value is not a positive number.
    """
    return fit_power_laws(compute, [losses])[0]


def fit_power_laws(
    compute: Sequence[float], sets: Sequence[Sequence[float]], *, near: PowerLaw | None = None
) -> list[PowerLaw]:
    """The saturating power laws through several sets of losses at the same compute; ``near``: one that was found for almost
    the same losses, to start from.

    Raises:
        FieldError: there are fewer than 4 points, or a value is not a positive number.
    """
    x_P, *y_SP = _logarithms(compute, *sets, at_least=4)
    centre = x_P.mean()

    def predict(parameters_BK: Values) -> tuple[Values, Values]:
        irreducible, scale, exponent = (each[:, None] for each in parameters_BK.T)
        fall = -np.exp(exponent) * (x_P - centre)
        one = np.ones_like(fall)
        return _log_sum([irreducible * one, scale + fall], [one, one, fall], owners=[0, 1, 1])

    # From where all of the loss seems reducible no step leads back: several shares, also near a law that is known.
    shares, exponents = ((0.01, 0.3, 0.6, 0.9), (0.03, 0.1, 0.3, 1.0)) if near is None else ((0.3, 0.8), (0.3,))
    starts = [
        (low + math.log(share), math.log1p(-share) + middle, math.log(exponent))
        for low, middle in ((y_P.min(), y_P.mean()) for y_P in y_SP)
        for share, exponent in product(shares, exponents)
    ]
    starts_SMK = np.reshape(starts, (len(y_SP), -1, 3))
    if near is not None:
        scale = math.log(near.scale) - near.exponent * centre
        starts_SMK = _with(starts_SMK, (math.log(near.irreducible), scale, math.log(near.exponent)))
    return [
        PowerLaw(
            irreducible=irreducible,
            scale=scale * math.exp(exponent * centre),
            exponent=exponent,
            compute=_range(compute),
        )
        for irreducible, scale, exponent in _best_fits(predict, y_SP, starts_SMK)
    ]


def fit_size_law(params: Sequence[float], data: Sequence[float], losses: Sequence[float]) -> SizeLaw:
    """The law of both sizes through points.

    Raises:
        FieldError: there are fewer than 6 points, or a value is not a positive number.
    """
    return fit_size_laws(params, data, [losses])[0]


def fit_size_laws(
    params: Sequence[float], data: Sequence[float], sets: Sequence[Sequence[float]], *, near: SizeLaw | None = None
) -> list[SizeLaw]:
    """The laws of both sizes through several sets of losses at the same points; ``near``: one that was found for almost the
    same losses, to start from.

    Raises:
        FieldError: there are fewer than 6 points, or a value is not a positive number.
    """
    n_P, d_P, *y_SP = _logarithms(params, data, *sets, at_least=6)
    n_centre, d_centre = n_P.mean(), d_P.mean()

    def predict(parameters_BK: Values) -> tuple[Values, Values]:
        irreducible, n_scale, n_exponent, d_scale, d_exponent = (each[:, None] for each in parameters_BK.T)
        of_params = -np.exp(n_exponent) * (n_P - n_centre)
        of_data = -np.exp(d_exponent) * (d_P - d_centre)
        one = np.ones_like(of_params)
        return _log_sum(
            [irreducible * one, n_scale + of_params, d_scale + of_data],
            [one, one, of_params, one, of_data],
            owners=[0, 1, 1, 2, 2],
        )

    if near is None:
        starts = [
            (low + math.log(share), half, math.log(a), half, math.log(b))
            for low, middle in ((y_P.min(), y_P.mean()) for y_P in y_SP)
            for share, a, b in product((0.05, 0.5, 0.9), (0.1, 0.4, 1.0), (0.1, 0.4, 1.0))
            for half in [middle + math.log((1 - share) / 2)]
        ]
        starts_SMK = np.reshape(starts, (len(y_SP), -1, 5))
    else:
        n_scale = math.log(near.params_scale) - near.params_exponent * n_centre
        d_scale = math.log(near.data_scale) - near.data_exponent * d_centre
        n_exponent, d_exponent = math.log(near.params_exponent), math.log(near.data_exponent)
        start = (math.log(near.irreducible), n_scale, n_exponent, d_scale, d_exponent)
        starts_SMK = _with(np.empty((len(y_SP), 0, 5)), start)
    return [
        SizeLaw(
            irreducible=irreducible,
            params_scale=n_scale * math.exp(n_exponent * n_centre),
            params_exponent=n_exponent,
            data_scale=d_scale * math.exp(d_exponent * d_centre),
            data_exponent=d_exponent,
            params=_range(params),
            data=_range(data),
        )
        for irreducible, n_scale, n_exponent, d_scale, d_exponent in _best_fits(predict, y_SP, starts_SMK)
    ]


def _log_sum(terms: Sequence[Values], slopes: Sequence[Values], owners: Sequence[int]) -> tuple[Values, Values]:
    """``log(sum(exp(terms)))`` and its derivatives, one more axis: parameter k moves term ``owners[k]`` by ``slopes[k]``."""
    total = np.logaddexp.reduce(terms)
    shares = [np.exp(term - total) for term in terms]
    return total, np.stack([shares[owner] * slope for owner, slope in zip(owners, slopes, strict=True)], axis=-1)


def _best_fits(predict: Predict, y_SP: Sequence[Values], starts_SMK: Values) -> list[list[float]]:
    """The constants of the best law for every set, over its starts."""
    sets, starts, parameters = starts_SMK.shape
    found_BK, loss_B = fit_robustly(
        predict, np.repeat(y_SP, starts, axis=0), starts_SMK.reshape(-1, parameters), delta=HUBER_DELTA, bound=_BOUND
    )
    best_S = loss_B.reshape(sets, starts).argmin(axis=1)
    best_SK = np.exp(found_BK.reshape(starts_SMK.shape)[np.arange(sets), best_S])
    return [[float(constant) for constant in best_K] for best_K in best_SK]


def _with(starts_SMK: Values, start_K: Sequence[float]) -> Values:
    """One more start for every set."""
    more_SMK = np.broadcast_to(np.asarray(start_K), (len(starts_SMK), 1, len(start_K)))
    return np.concatenate([starts_SMK, more_SMK], axis=1)


def _logarithms(*rows: Sequence[float], at_least: int) -> Values:
    """Of sizes and losses, a row each, over the same points."""
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or min(lengths) < at_least:
        raise FieldError("points", expected=f"at least {at_least} of them", got=tuple(len(row) for row in rows))
    values = np.asarray(rows, dtype=np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise FieldError("points", expected="positive numbers", got=values.tolist())
    return np.log(values)


def _range(values: Sequence[float]) -> Range:
    return Range(low=float(min(values)), high=float(max(values)))
