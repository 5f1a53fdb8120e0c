"""The contract of every sampler: history in, a point of the unit cube out; the same arguments give the same point."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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


def with_substitutes(observed: Sequence[Observation]) -> Sequence[Observation]:
    """The same points, those that lack values with the worst seen: for samplers that would otherwise propose them again.

    Where no point has all of its values, those for one objective have none, and those for several are left out.
    """
    whole = [each for each in observed if each.loss is not None]
    if not whole:
        # With several objectives there is no way to say that nothing is known of a point.
        return [each for each in observed if not each.others]
    loss = _worst(each.loss for each in whole)
    others = [_worst(values) for values in zip(*(each.others for each in whole), strict=True)]
    return [_filled(each, loss, others) if each.loss is None else each for each in observed]


def _worst(values: Iterable[float | None]) -> float:
    return max(value for value in values if value is not None)


def _filled(observation: Observation, loss: float, others: Sequence[float]) -> Observation:
    pairs = zip(observation.others, others, strict=True)
    return replace(observation, loss=loss, others=tuple(other if own is None else own for own, other in pairs))
