"""Loss as a function of compute, or of model and data size: saturating power laws, fitted robustly, with their domain.

    L(C) = E + A C^-b                    along the frontier of compute-optimal runs
    L(N, D) = E + A N^-alpha + B D^-beta      over all runs (2203.15556, approach 3)

Fitted by the Huber loss of the residuals of log L from many starts, with E fitted too, because an irreducible loss set by
hand moves the exponents. The answers say where the runs were: a law knows nothing outside of what it was fitted to.
"""

# P points, K parameters

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from einlayers.errors import FieldError
from search.studies.laws import PowerLaw, Range, SizeLaw

HUBER_DELTA = 1e-2
"""Residuals of log L beyond this count linearly: about the noise between seeds, so that what is worse than noise weighs
less."""

Values = npt.NDArray[np.float64]


def fit_power_law(compute: Sequence[float], losses: Sequence[float], *, near: PowerLaw | None = None) -> PowerLaw:
    """The saturating power law through points; ``near``: one that was found for almost the same points, to start from.

    Raises:
        FieldError: there are fewer than 4 points, or a value is not a positive number.
    """
    x_P, y_P = _logarithms(compute, losses, at_least=4)
    centre = x_P.mean()

    def predict(parameters_K: Values) -> tuple[Values, Values]:
        irreducible, scale, exponent = parameters_K
        return _log_sum(
            [np.full_like(x_P, irreducible), scale - np.exp(exponent) * (x_P - centre)],
            [np.ones_like(x_P), np.ones_like(x_P), -np.exp(exponent) * (x_P - centre)],
        )

    lowest = y_P.min()
    # From where all of the loss seems reducible no step leads back: several shares, also near a law that is known.
    shares, exponents = ((0.01, 0.3, 0.6, 0.9), (0.03, 0.1, 0.3, 1.0)) if near is None else ((0.3, 0.8), (0.3,))
    starts = [
        (lowest + math.log(share), math.log1p(-share) + y_P.mean(), math.log(exponent))
        for share, exponent in product(shares, exponents)
    ]
    if near is not None:
        scale = math.log(near.scale) - near.exponent * centre
        starts.append((math.log(near.irreducible), scale, math.log(near.exponent)))
    irreducible, scale, exponent = np.exp(_best_fit(predict, y_P, starts))
    return PowerLaw(
        irreducible=float(irreducible),
        scale=float(scale * math.exp(float(exponent * centre))),
        exponent=float(exponent),
        compute=_range(compute),
    )


def fit_size_law(
    params: Sequence[float], data: Sequence[float], losses: Sequence[float], *, near: SizeLaw | None = None
) -> SizeLaw:
    """The law of both sizes through points; ``near``: one that was found for almost the same points, to start from.

    Raises:
        FieldError: there are fewer than 6 points, or a value is not a positive number.
    """
    n_P, y_P = _logarithms(params, losses, at_least=6)
    d_P, _ = _logarithms(data, losses, at_least=6)
    n_centre, d_centre = n_P.mean(), d_P.mean()

    def predict(parameters_K: Values) -> tuple[Values, Values]:
        irreducible, n_scale, n_exponent, d_scale, d_exponent = parameters_K
        of_params = -np.exp(n_exponent) * (n_P - n_centre)
        of_data = -np.exp(d_exponent) * (d_P - d_centre)
        one = np.ones_like(y_P)
        return _log_sum(
            [irreducible * one, n_scale + of_params, d_scale + of_data],
            [one, one, of_params, one, of_data],
            owners=[0, 1, 1, 2, 2],
        )

    lowest, middle = y_P.min(), y_P.mean()
    starts = []
    if near is not None:
        n_scale = math.log(near.params_scale) - near.params_exponent * n_centre
        d_scale = math.log(near.data_scale) - near.data_exponent * d_centre
        exponents = math.log(near.params_exponent), math.log(near.data_exponent)
        starts = [(math.log(near.irreducible), n_scale, exponents[0], d_scale, exponents[1])]
    for share, a, b in () if near else product((0.05, 0.5, 0.9), (0.1, 0.4, 1.0), (0.1, 0.4, 1.0)):
        half = middle + math.log((1 - share) / 2)
        starts.append((lowest + math.log(share), half, math.log(a), half, math.log(b)))
    irreducible, n_scale, n_exponent, d_scale, d_exponent = np.exp(_best_fit(predict, y_P, starts))
    return SizeLaw(
        irreducible=float(irreducible),
        params_scale=float(n_scale * math.exp(float(n_exponent * n_centre))),
        params_exponent=float(n_exponent),
        data_scale=float(d_scale * math.exp(float(d_exponent * d_centre))),
        data_exponent=float(d_exponent),
        params=_range(params),
        data=_range(data),
    )


def _log_sum(
    terms: Sequence[Values], slopes: Sequence[Values], owners: Sequence[int] = (0, 1, 1)
) -> tuple[Values, Values]:
    """``log(sum(exp(terms)))`` and its derivatives ``(P, K)``: parameter k moves term ``owners[k]`` by ``slopes[k]``."""
    total_P = np.logaddexp.reduce(terms)
    shares = [np.exp(term - total_P) for term in terms]
    return total_P, np.stack([shares[owner] * slope for owner, slope in zip(owners, slopes, strict=True)], axis=1)


def _best_fit(
    predict: Callable[[Values], tuple[Values, Values]], y_P: Values, starts: Sequence[Sequence[float]]
) -> Values:
    def residuals(parameters_K: Values) -> Values:
        return predict(parameters_K)[0] - y_P

    def jacobian(parameters_K: Values) -> Values:
        return predict(parameters_K)[1]

    found = [
        least_squares(
            residuals,
            start,
            jac=jacobian,
            bounds=(-60.0, 60.0),
            loss="huber",
            f_scale=HUBER_DELTA,
            max_nfev=100,
        )
        for start in starts
    ]
    best: Values = min(found, key=lambda fit: float(fit.cost)).x
    return best


def _logarithms(sizes: Sequence[float], losses: Sequence[float], *, at_least: int) -> tuple[Values, Values]:
    if len(sizes) != len(losses) or len(sizes) < at_least:
        raise FieldError("points", expected=f"at least {at_least} of them", got=(len(sizes), len(losses)))
    if not all(math.isfinite(value) and value > 0 for value in (*sizes, *losses)):
        raise FieldError("points", expected="positive numbers", got=(list(sizes), list(losses)))
    return np.log(np.asarray(sizes, dtype=np.float64)), np.log(np.asarray(losses, dtype=np.float64))


def _range(values: Sequence[float]) -> Range:
    return Range(low=float(min(values)), high=float(max(values)))
