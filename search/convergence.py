"""Whether a search has anything left to gain: the expected improvement of the best structure that it could still try.

A Gaussian process over the history says what is expected of every point of the cube; losses are compared as logarithms
where they are positive, so that an improvement is a share of the loss. It is the criterion of Jones, Schonlau and Welch
(Journal of Global Optimization 13, 1998, section 4.1), against the lowest mean of the process, because losses are noisy.
"""

import math
import warnings
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from search.proposals import Inherited, PastTrial, derive_seed, even_points, seen
from search.samplers.base import Observation
from search.spec import SearchSpec

LEAST_OBSERVED = 20
"""With fewer, a process takes a landscape that it has not seen for a flat one."""

_MOST_OBSERVED = 200
_CANDIDATES = 1024
_NUM_BEST = 5
_NEAR = 0.05

Points = NDArray[np.float64]


def has_converged(spec: SearchSpec, history: Sequence[PastTrial], inherited: Sequence[Inherited]) -> bool:
    """Whether a search that ends when nothing is to be expected any more has come to that; ``patience`` is not looked at."""
    if spec.convergence is None or spec.convergence.patience is not None:
        return False
    observed, _ = seen(spec, [*inherited, *history])
    seed = derive_seed(spec.sampler.seed, "convergence", len(history))
    return expected_improvement(observed, seed) <= spec.convergence.min_improvement


def expected_improvement(observed: Sequence[Observation], seed: int) -> float:
    """By which share the loss of the best structure is expected to fall at the most promising point, at least 0; infinite
    while too little is known to say. Where a loss is not positive there are no shares: by how much."""
    known = [(each.unit, each.loss) for each in observed if each.loss is not None]
    if len(known) < max(LEAST_OBSERVED, 4 * len(known[0][0]) if known else 0):
        return math.inf
    # The process must be right about good structures: of a long history the bad ones are left out.
    known = sorted(known, key=lambda pair: pair[1])[:_MOST_OBSERVED]
    points, losses = np.array([unit for unit, _ in known]), np.array([loss for _, loss in known])
    if losses.min() > 0:
        losses = np.log(losses)
    spread = losses.std()
    # Where all are alike there is nothing to divide by, and nothing to gain.
    return float(spread * _most_expected(points, (losses - losses.mean()) / max(spread, 1e-12), seed))


def _most_expected(points: Points, values: Points, seed: int) -> float:
    """The greatest expected improvement, for values of mean 0 and standard deviation 1."""
    # A second to load, for searches that ask for it alone.
    from scipy.special import ndtr
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]  # it ships no types
    from sklearn.gaussian_process import GaussianProcessRegressor  # type: ignore[import-untyped]
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel  # type: ignore[import-untyped]

    dimension = points.shape[1]
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(np.ones(dimension), (5e-2, 1e1), nu=2.5) + WhiteKernel(
        1e-2, (1e-6, 1)
    )
    process = GaussianProcessRegressor(kernel)
    with warnings.catch_warnings():
        # A length at the end of its range says that a coordinate does not matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(points, values)
    noise = math.exp(process.kernel_.k2.theta[0])
    lowest = process.predict(points).min()
    mean, sd = process.predict(_candidates(points, seed), return_std=True)
    sd = np.sqrt(np.maximum(sd**2 - noise, 1e-12))  # of the loss itself, not of one more trial
    z = (lowest - mean) / sd
    return float(np.max(sd * (z * ndtr(z) + np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))))


def _candidates(points: Points, seed: int) -> Points:
    """Points all over the cube, and around the best ones, which come first."""
    even = np.array(list(islice(even_points(points.shape[1], seed), _CANDIDATES)))
    near = np.repeat(points[:_NUM_BEST], _CANDIDATES // _NUM_BEST, axis=0)
    steps = np.random.default_rng(seed).normal(0, _NEAR, near.shape)
    return np.concatenate([even, np.clip(near + steps, 0, 1)])
