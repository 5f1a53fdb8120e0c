"""How far the best that contestants have found is from the best that there is, over seeds, and how sure that is."""

import numpy as np
import numpy.typing as npt

from search.studies.estimates import Estimate

# S seeds, T trials
Regrets = npt.NDArray[np.float64]
"""``(S, T)``: the true loss of what looked best so far, less the lowest there is."""

_RESAMPLES = 2000


def mean(regrets_ST: Regrets, num_trials: int) -> Estimate:
    """The regret after so many trials, and its bootstrap interval over seeds."""
    regrets_S = regrets_ST[:, num_trials - 1]
    draws = np.random.default_rng(0).integers(len(regrets_S), size=(_RESAMPLES, len(regrets_S)))
    return _interval(float(regrets_S.mean()), regrets_S[draws].mean(axis=1))


def speedup(regrets_ST: Regrets, random_ST: Regrets) -> Estimate:
    """How many times fewer trials it needs than random search does for the regret that this has at its end.

    A ratio of the trials at which the means over seeds get there; one more than all of them where they do not.
    """
    draw = np.random.default_rng(0)
    num = len(regrets_ST)
    ratios = [
        _ratio(regrets_ST[draw.integers(num, size=num)], random_ST[draw.integers(len(random_ST), size=len(random_ST))])
        for _ in range(_RESAMPLES)
    ]
    return _interval(_ratio(regrets_ST, random_ST), np.array(ratios))


def _ratio(regrets_ST: Regrets, random_ST: Regrets) -> float:
    goal = random_ST.mean(axis=0)[-1]
    return _trials_to(random_ST, goal) / _trials_to(regrets_ST, goal)


def _trials_to(regrets_ST: Regrets, goal: float) -> int:
    means_T = regrets_ST.mean(axis=0)
    reached = np.nonzero(means_T <= goal)[0]
    return int(reached[0]) + 1 if len(reached) else len(means_T) + 1


def _interval(value: float, draws: npt.NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high))
