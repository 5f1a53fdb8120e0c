"""A sampler that is shown less of a long history, so that what an ask costs does not grow with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from search.samplers.base import Observation, Sampler
from search.space import Unit

MAX_OBSERVED = 500
_MOST_BEST = 100
"""Four times as many as TPE ever counts as good (25), so that its good points are those of the whole history."""


@dataclass(frozen=True, slots=True)
class Thinned:
    """Shows at most ``MAX_OBSERVED`` points: the best ones, and evenly spaced ones of the others, in their order."""

    sampler: Sampler

    @property
    def learns(self) -> bool:
        """As the sampler."""
        return self.sampler.learns

    def ask(
        self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
    ) -> Iterator[Unit]:
        """The points of the sampler; see ``Sampler.ask``."""
        return self.sampler.ask(_thinned(observed), pending, num_coordinates, seed)


def _thinned(observed: Sequence[Observation]) -> Sequence[Observation]:
    if len(observed) <= MAX_OBSERVED:
        return observed
    ranked = sorted(range(len(observed)), key=lambda i: (observed[i].loss is None, observed[i].loss or 0.0, i))
    rest = sorted(ranked[_MOST_BEST:])
    places = MAX_OBSERVED - _MOST_BEST
    kept = {*ranked[:_MOST_BEST], *(rest[place * len(rest) // places] for place in range(places))}
    return [observed[i] for i in sorted(kept)]
