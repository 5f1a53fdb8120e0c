"""CMA-ES, replayed from the history: no state of its own survives an ask, so nothing but our rows has to be kept."""

from collections.abc import Iterator, Sequence

import numpy as np
from cmaes import CMA

from search.samplers.base import Observation
from search.space import Unit

_SPREAD = 0.3
"""The first standard deviation: the cube from its middle, two of them to each face."""


class CmaEs:
    """Covariance matrix adaptation (1604.00772): every ``population`` ends of trials, in their order, are one generation.

    Points that others proposed count as well. What gave no loss ranks last. A distribution that has shrunk to a point, or
    that far points have blown up, starts anew from where it is.
    """

    learns = True

    def ask(
        self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
    ) -> Iterator[Unit]:
        """Draws from the distribution after the last full generation; see ``Sampler.ask``."""
        # The algorithm needs two dimensions; of a second one that never changes it learns just that.
        num_dimensions = max(2, num_coordinates)
        optimizer = _started(np.full(num_dimensions, 0.5), seed)
        population = optimizer.population_size
        for start in range(0, len(observed) - population + 1, population):
            with np.errstate(over="ignore", invalid="ignore"):  # of far points; it starts anew after them
                optimizer.tell(_ranked(observed[start : start + population], num_dimensions))
            if optimizer.should_stop() or not optimizer._sigma <= 1:  # it has no public name
                optimizer = _started(optimizer.mean, seed)
        while True:
            yield tuple(float(u) for u in optimizer.ask()[:num_coordinates])


def _started(mean: np.ndarray, seed: int) -> CMA:
    bounds = np.array([[0.0, 1.0]] * len(mean))
    return CMA(mean=np.clip(mean, 0, 1), sigma=_SPREAD, bounds=bounds, seed=seed)


def _ranked(generation: Sequence[Observation], num_dimensions: int) -> list[tuple[np.ndarray, float]]:
    """The points with their ranks for losses, which are all that counts, and finite whatever the losses are."""
    order = sorted(range(len(generation)), key=lambda i: (generation[i].loss is None, generation[i].loss or 0.0, i))
    padded = [np.array((*each.unit, *[0.5] * (num_dimensions - len(each.unit)))) for each in generation]
    return [(padded[i], float(rank)) for rank, i in enumerate(order)]
