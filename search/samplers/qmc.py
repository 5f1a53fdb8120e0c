"""Quasi-Monte Carlo: points that fill the cube more evenly than random ones."""

from collections.abc import Iterator, Sequence

from scipy.stats import qmc

from search.samplers.base import Observation
from search.space import Unit


class Qmc:
    """A scrambled Sobol sequence: point n of it for trial n, whatever was observed.

    ``seed`` scrambles the sequence, and is that of the search: with one of its own for every proposal the points would be
    nothing but random.
    """

    learns = True

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def ask(
        self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
    ) -> Iterator[Unit]:
        """The next points of the sequence; see ``Sampler.ask``."""
        sequence = qmc.Sobol(num_coordinates, scramble=True, rng=self._seed)
        if past := len(observed) + len(pending):
            sequence.fast_forward(past)
        while True:
            yield tuple(float(u) for u in sequence.random(1)[0])
