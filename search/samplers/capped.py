"""A sampler whose cost grows steeply with the history, and another one for when it has grown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from search.samplers.base import Observation, Sampler
from search.space import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Capped:
    """``first`` while at most ``max_observed`` points were observed, ``then`` after that."""

    first: Sampler
    then: Sampler
    max_observed: int

    @property
    def learns(self) -> bool:
        """It has to see the history to know how long it is."""
        return True

    def ask(
        self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
    ) -> Iterator[Unit]:
        """The points of the one whose turn it is; see ``Sampler.ask``."""
        sampler = self.first if len(observed) <= self.max_observed else self.then
        return sampler.ask(observed, pending, num_coordinates, seed)
