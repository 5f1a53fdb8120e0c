"""What is to be expected of designs that nobody tried, by those that were: a Gaussian process, and the improvement that it
expects.

A Matérn kernel (5/2) with a length for every feature, and noise. Lengths, amplitude and noise are the most probable ones
under broad priors, by their gradients (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, sec. 5.4.1).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

# N designs that were tried, M others, D features
Values = NDArray[np.float64]

_ROOT_5 = math.sqrt(5)
_JITTER = 1e-6
"""Added to the noise, so that equal designs do not make the covariance singular."""

_LENGTH, _AMPLITUDE, _NOISE = (math.log(0.8), 1.0), (0.0, 1.0), (math.log(0.01), 2.0)
"""Means and standard deviations of the logarithms beforehand, as features and values are of the order of 1."""

_LENGTHS, _AMPLITUDES, _NOISES = (math.log(0.03), math.log(20)), (-4.0, 4.0), (math.log(1e-5), 0.0)
"""Where these logarithms can be."""

_MOST_STEPS = 40

_FAR = 1e4
"""So many standard deviations below, the first term of the series is all of it, to eight digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """A Gaussian process that has seen values of designs.

    ``features_ND``: ``(N, D)``; ``values_N``: ``(N,)``, in units of ``scale``, from ``center`` on; ``logs``: logarithms of
    the D lengths, the amplitude and the noise.
    """

    features_ND: Values
    values_N: Values
    center: float
    scale: float
    logs: Values
    _factor_NN: Values = field(init=False, repr=False)
    _weights_N: Values = field(init=False, repr=False)

    def __post_init__(self) -> None:
        factor_NN, weights_N = _solve(self.logs, _squares(self.features_ND), self.values_N)
        object.__setattr__(self, "_factor_NN", factor_NN)
        object.__setattr__(self, "_weights_N", weights_N)

    @classmethod
    def fit(cls, features_ND: Values, values_N: Values) -> Self:
        """The most probable process, of at least one value."""
        from scipy.optimize import minimize

        center, scale = float(values_N.mean()), max(float(values_N.std()), 1e-12)
        standard_N = (values_N - center) / scale
        num_features = features_ND.shape[1]
        found = minimize(
            improbability,
            np.array([_LENGTH[0]] * num_features + [_AMPLITUDE[0], _NOISE[0]]),
            (_squares(features_ND), standard_N),
            jac=True,
            method="L-BFGS-B",
            bounds=[_LENGTHS] * num_features + [_AMPLITUDES, _NOISES],
            options={"maxiter": _MOST_STEPS},
        )
        return cls(features_ND=features_ND, values_N=standard_N, center=center, scale=scale, logs=found.x)

    def with_expected(self, features_MD: Values) -> Self:
        """The same process, as if these had been tried too and had given what is expected (the "Kriging believer" of
        Ginsbourger, Le Riche and Carraro, 2010)."""
        expected_M = (self.predict(features_MD)[0] - self.center) / self.scale
        return replace(
            self,
            features_ND=np.concatenate([self.features_ND, features_MD]),
            values_N=np.concatenate([self.values_N, expected_M]),
        )

    @property
    def lowest(self) -> float:
        """The lowest mean of what was tried: values are noisy."""
        means_N = self.values_N - _noise(self.logs) * self._weights_N
        return self.center + self.scale * float(means_N.min())

    def predict(self, features_MD: Values) -> tuple[Values, Values]:
        """The means of the values of designs, and their standard deviations, without the noise of another measurement."""
        from scipy.linalg import solve_triangular

        scaled_MD, scaled_ND = (each * np.exp(-self.logs[:-2]) for each in (features_MD, self.features_ND))
        squares_MN = (scaled_MD**2).sum(1)[:, None] + (scaled_ND**2).sum(1) - 2 * scaled_MD @ scaled_ND.T
        amplitude = math.exp(self.logs[-2])
        kernel_MN = amplitude * _matern(np.maximum(squares_MN, 0))
        half_NM = solve_triangular(self._factor_NN, kernel_MN.T, lower=True)
        variance_M = np.maximum(amplitude - (half_NM**2).sum(0), 1e-12)
        return self.center + self.scale * kernel_MN @ self._weights_N, self.scale * np.sqrt(variance_M)

    def log_improvement(self, features_MD: Values) -> Values:
        """The logarithm of by how much each is expected to be below the lowest mean (Jones, Schonlau and Welch, Journal of
        Global Optimization 13, 1998)."""
        mean_M, sd_M = self.predict(features_MD)
        return np.asarray(np.log(sd_M) + log_gain((self.lowest - mean_M) / sd_M))


def log_gain(z: Values) -> Values:
    """log(φ(z) + z Φ(z)), of the expected excess of a standard normal variable over -z; also where that is 0 as a float."""
    from scipy.special import erfcx, ndtr

    # Below 0 it is φ(z) (1 + z Φ(z)/φ(z)), and far below, where that is rounding, φ(z)/z².
    below = np.clip(z, -_FAR, 0)
    rest = 1 + below * math.sqrt(math.pi / 2) * erfcx(-below / math.sqrt(2))
    log_density = -(z**2) / 2 - math.log(2 * math.pi) / 2
    loss = log_density + np.log(rest) - 2 * np.log(np.maximum(-z, _FAR) / _FAR)
    above = np.maximum(z, 0)
    gain = np.log(np.exp(-(above**2) / 2) / math.sqrt(2 * math.pi) + above * ndtr(above))
    return np.asarray(np.where(z < 0, loss, gain))


def improbability(logs: Values, squares_NND: Values, values_N: Values) -> tuple[float, Values]:
    """How improbable values are with these lengths, amplitude and noise, whose logarithms these are, and they themselves;
    the negative logarithm but for a constant, and its gradient. ``squares_NND``: squared differences of features."""
    from scipy.linalg import cho_solve

    num_features = squares_NND.shape[2]
    weights_D, amplitude, noise = np.exp(-2 * logs[:-2]), math.exp(logs[-2]), math.exp(logs[-1])
    try:
        factor_NN, solved_N = _solve(logs, squares_NND, values_N)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(logs)
    slope_NN = (cho_solve((factor_NN, True), np.eye(len(values_N))) - np.outer(solved_N, solved_N)) / 2
    squares_NN = squares_NND @ weights_D
    # What is left of the derivative of the kernel by a squared distance has no root in it.
    by_squares_NN = slope_NN * (amplitude * 5 / 3) * _decay(squares_NN) * (1 + _ROOT_5 * np.sqrt(squares_NN))
    gradient = np.array(
        [
            *(by_squares_NN.ravel() @ squares_NND.reshape(-1, num_features) * weights_D),
            (slope_NN * amplitude * _matern(squares_NN)).sum(),
            np.trace(slope_NN) * noise,
        ]
    )
    centers, widths = np.array([_LENGTH] * num_features + [_AMPLITUDE, _NOISE]).T
    away = (logs - centers) / widths
    fit = values_N @ solved_N / 2 + np.log(np.diag(factor_NN)).sum()
    return float(fit + away @ away / 2), gradient + away / widths


def _solve(logs: Values, squares_NND: Values, values_N: Values) -> tuple[Values, Values]:
    """The Cholesky factor of the covariance, and what it is to be multiplied by to give the values."""
    from scipy.linalg import cho_solve, cholesky

    covariance_NN = math.exp(logs[-2]) * _matern(squares_NND @ np.exp(-2 * logs[:-2]))
    covariance_NN[np.diag_indices(len(values_N))] += _noise(logs)
    factor_NN = cholesky(covariance_NN, lower=True)
    return factor_NN, cho_solve((factor_NN, True), values_N)


def _noise(logs: Values) -> float:
    return math.exp(logs[-1]) + _JITTER


def _squares(features_ND: Values) -> Values:
    """Squared differences of every feature: ``(N, N, D)``."""
    return np.asarray((features_ND[:, None] - features_ND[None]) ** 2)


def _matern(squares: Values) -> Values:
    return np.asarray((1 + _ROOT_5 * np.sqrt(squares) + squares * 5 / 3) * _decay(squares))


def _decay(squares: Values) -> Values:
    return np.asarray(np.exp(-_ROOT_5 * np.sqrt(squares)))
