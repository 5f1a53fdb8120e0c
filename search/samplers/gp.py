"""Bayesian optimisation over what designs are, and not over where they lie in a cube.

Designs are compared by their features: the exponents of their structures and the taxonomy that follows from these
(2410.02117, section 4). So the faces of the space, which take a fifth of a coordinate each, are as thin as they are, and
what two structures have in common is seen wherever they lie.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from search.samplers.base import Observation, with_substitutes
from search.space import Unit
from search.surrogate import Surrogate, Values

Describe = Callable[[Unit], tuple[float, ...]]
"""The features of the design at a point."""

_NUM_EVEN = 256
_NUM_BEST = 5
_STEPS = (0.02, 0.05, 0.15)
_NUM_NEAR = 8
"""Candidates: points all over the cube, and of each of the best so many at each of these distances; a design that nobody
would tell from another is not proposed beside it."""

_APART = 0.01
"""Designs of which no feature differs by more are taken for one."""

_DEAR = 3
"""What is further above the median than so many times what the best is below it, teaches no more than that: losses of
structures that do not learn are of another order, and would make all others look alike."""

_HIGHEST_LOSS = 1e100


class Gp:
    """Expected improvement of a Gaussian process, after ``startup_trials``, of which every second is one of the
    ``landmarks`` as long as there are some: that which is the furthest from all that was tried.

    Several objectives are one by weights that are drawn anew for every proposal (ParEGO: Knowles, IEEE Transactions on
    Evolutionary Computation 10, 2006).
    """

    learns = True

    def __init__(self, startup_trials: int, describe: Describe = tuple, landmarks: Sequence[Unit] = ()) -> None:
        self._startup_trials = startup_trials
        self._describe = describe
        self._landmarks = landmarks

    def ask(
        self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
    ) -> Iterator[Unit]:
        """See ``Sampler.ask``."""
        draw = np.random.default_rng(seed)
        told = [each for each in with_substitutes(observed) if each.loss is not None]
        known = [*(each.unit for each in observed), *pending]
        if len(known) >= self._startup_trials and told:
            yield from self._promising(told, pending, num_coordinates, draw)
        elif len(known) % 2 == 0:
            yield from self._far_landmarks(known)
        while True:
            yield tuple(map(float, draw.random(num_coordinates)))

    def _far_landmarks(self, known: Sequence[Unit]) -> Iterator[Unit]:
        left, features = list(self._landmarks), [self._describe(unit) for unit in known]
        while left:
            gaps = [min((_gap(self._describe(unit), each) for each in features), default=1.0) for unit in left]
            if max(gaps) <= _APART:
                break
            farthest = left.pop(gaps.index(max(gaps)))
            features.append(self._describe(farthest))
            yield farthest

    def _promising(
        self, told: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, draw: np.random.Generator
    ) -> Iterator[Unit]:
        tried_ND, pending_PD = self._features([each.unit for each in told]), self._features(pending)
        model = Surrogate.fit(tried_ND, _values(told, draw))
        best_first = np.argsort(model.predict(tried_ND)[0], kind="stable")[:_NUM_BEST]
        candidates = [
            *(tuple(map(float, unit)) for unit in draw.random((_NUM_EVEN, num_coordinates))),
            *self._landmarks,
            *near([told[i].unit for i in best_first], draw),
        ]
        features_MD = self._features(candidates)
        if pending:
            model = model.with_expected(pending_PD)
        improvement_M = model.log_improvement(features_MD)
        for each_D in (*tried_ND, *pending_PD):
            improvement_M[_is_near(features_MD, each_D)] = -np.inf
        while np.isfinite(improvement_M).any():
            best = int(np.argmax(improvement_M))
            yield candidates[best]
            improvement_M[_is_near(features_MD, features_MD[best])] = -np.inf

    def _features(self, units: Sequence[Unit]) -> Values:
        return np.array([self._describe(unit) for unit in units])


def _values(told: Sequence[Observation], draw: np.random.Generator) -> Values:
    """What is minimised, of trials with all of their values."""
    values_NK = np.array([(each.loss, *each.others) for each in told], dtype=float)
    values_NK = np.clip(values_NK, -_HIGHEST_LOSS, _HIGHEST_LOSS)
    lowest_K, median_K = values_NK.min(axis=0), np.median(values_NK, axis=0)
    values_NK = np.minimum(values_NK, median_K + _DEAR * (median_K - lowest_K))
    if values_NK.shape[1] == 1:
        return np.asarray(values_NK[:, 0])
    shares_NK = (values_NK - lowest_K) / np.maximum(values_NK.max(axis=0) - lowest_K, 1e-300)
    weighted_NK = shares_NK * draw.dirichlet(np.ones(values_NK.shape[1]))
    return np.asarray(weighted_NK.max(axis=1) + 0.05 * weighted_NK.sum(axis=1))


def near(units: Sequence[Unit], draw: np.random.Generator) -> Iterator[Unit]:
    """Points around others: of each about half of the coordinates moved, and at least one."""
    for unit in units:
        for step in _STEPS:
            for _ in range(_NUM_NEAR):
                moves = draw.random(len(unit)) < 0.5
                moves[draw.integers(len(unit))] = True
                moved = np.clip(np.array(unit) + moves * draw.normal(0, step, len(unit)), 0, 1)
                yield tuple(map(float, moved))


def _is_near(features_MD: Values, features_D: Values) -> NDArray[np.bool_]:
    return np.asarray(np.abs(features_MD - features_D).max(axis=1) <= _APART)


def _gap(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))
