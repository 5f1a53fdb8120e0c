"""The contract of every sampler: history in, a point of the unit cube out; the same arguments give the same point."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from search.space import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A point that was tried: its loss, or None where training it gave no loss (infeasible, failed); and what a search for
    several objectives minimises beside the loss, all of it where there is a loss, or else as far as it is known."""

    unit: Unit
    loss: float | None
    others: tuple[float | None, ...] = ()


class Sampler(Protocol):
    """Proposes points. Keeps nothing between calls: what it knows is what it is given."""

    @property
    def learns(self) -> bool:
        """Whether the points depend on what was observed; otherwise nobody needs to prepare it."""
        ...

    def ask(
        self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
    ) -> Iterator[Unit]:
        """Points of ``num_coordinates`` in [0, 1] for the next trial, given what was observed and what is being tried.

        Endless; the first is the best, the others are for when it is refused, because its structure is known already.
        """
        ...
