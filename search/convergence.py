"""Whether a search has anything left to gain: the expected improvement of the best structure that it could still try.

A Gaussian process over the history says what is expected of every design; losses are compared as logarithms where they are
positive, so that an improvement is a share of the loss. It is the criterion of Jones, Schonlau and Welch (Journal of Global
Optimization 13, 1998, section 4.1), against the lowest mean of the process, because losses are noisy.
"""

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np

from search.proposals import Inherited, PastTrial, derive_seed, even_points, seen
from search.samplers.base import Observation
from search.samplers.gp import Describe, near
from search.space import Unit
from search.spec import SearchSpec
from search.surrogate import Surrogate

LEAST_OBSERVED = 20
"""With fewer, a process takes a landscape that it has not seen for a flat one."""

_MOST_OBSERVED = 200
_NUM_EVEN = 1024
_NUM_BEST = 5


def has_converged(spec: SearchSpec, history: Sequence[PastTrial], inherited: Sequence[Inherited]) -> bool:
    """Whether a search that ends when nothing is to be expected any more has come to that; ``patience`` is not looked at."""
    if spec.convergence is None or spec.convergence.patience is not None:
        return False
    observed, _ = seen(spec, [*inherited, *history])
    seed = derive_seed(spec.sampler.seed, "convergence", len(history))
    return expected_improvement(observed, seed, spec.cube.describe) <= spec.convergence.min_improvement


def expected_improvement(observed: Sequence[Observation], seed: int, describe: Describe = tuple) -> float:
    """By which share the loss of the best structure is expected to fall at the most promising point, at least 0; infinite
    while too little is known to say. Where a loss is not positive there are no shares: by how much."""
    known = [(each.unit, each.loss) for each in observed if each.loss is not None]
    if len(known) < max(LEAST_OBSERVED, 4 * len(known[0][0]) if known else 0):
        return math.inf
    # The process must be right about good structures: of a long history the bad ones are left out.
    known = sorted(known, key=lambda pair: pair[1])[:_MOST_OBSERVED]
    losses = np.array([loss for _, loss in known])
    if losses.min() > 0:
        losses = np.log(losses)
    if losses.min() == losses.max():
        return 0.0
    model = Surrogate.fit(np.array([describe(unit) for unit, _ in known]), losses)
    candidates = _candidates([unit for unit, _ in known], seed)
    return float(np.exp(model.log_improvement(np.array([describe(unit) for unit in candidates])).max()))


def _candidates(best_first: Sequence[Unit], seed: int) -> Sequence[Unit]:
    """Points all over the cube, and around the best ones."""
    even = islice(even_points(len(best_first[0]), seed), _NUM_EVEN)
    return [*even, *near(best_first[:_NUM_BEST], np.random.default_rng(seed))]
