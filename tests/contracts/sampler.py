"""What every sampler keeps: subclass, and give one fixture."""

import random
from typing import ClassVar

import pytest

from search.samplers.base import Observation, Sampler
from search.space import Unit

DIMENSIONS = pytest.mark.parametrize("num_coordinates", [1, 3, 5])


class SamplerContract:
    """History in, a point of the unit cube out; the same arguments give the same point."""

    DRAWS_AFTER: ClassVar[tuple[int, ...]] = (0, 30)
    """After how many observations the seed of a proposal still decides: not where its point is computed."""

    @pytest.fixture
    def sampler(self) -> Sampler:
        raise NotImplementedError("give the sampler that is to keep the contract")

    @DIMENSIONS
    def test_asks_for_a_point_of_the_cube(self, sampler: Sampler, num_coordinates: int) -> None:
        for num_observed in (0, 1, 30):
            for seed in range(5):
                unit = next(sampler.ask(_history(num_observed, num_coordinates), [], num_coordinates, seed))
                assert len(unit) == num_coordinates
                assert all(type(coordinate) is float and 0 <= coordinate <= 1 for coordinate in unit)

    @DIMENSIONS
    def test_gives_the_same_point_for_the_same_arguments(self, sampler: Sampler, num_coordinates: int) -> None:
        history, pending = _history(30, num_coordinates), _points(3, num_coordinates)
        first = next(sampler.ask(history, pending, num_coordinates, 7))
        next(sampler.ask(_history(12, num_coordinates), [], num_coordinates, 8))
        assert next(sampler.ask(history, pending, num_coordinates, 7)) == first

    @DIMENSIONS
    def test_looks_at_the_history_if_it_learns(self, sampler: Sampler, num_coordinates: int) -> None:
        seeds = range(10)
        without = [next(sampler.ask([], [], num_coordinates, seed)) for seed in seeds]
        informed = [next(sampler.ask(_history(30, num_coordinates), [], num_coordinates, seed)) for seed in seeds]
        assert (without != informed) == sampler.learns

    def test_gives_other_points_for_other_seeds(self, sampler: Sampler) -> None:
        for num_observed in self.DRAWS_AFTER:
            history = _history(num_observed, 3)
            assert len({next(sampler.ask(history, [], 3, seed)) for seed in range(10)}) == 10

    def test_takes_any_seed_that_a_search_derives(self, sampler: Sampler) -> None:
        for seed in (0, 2**31, 2**32 - 1):
            assert len(next(sampler.ask(_history(12, 2), [], 2, seed))) == 2

    def test_leaves_its_arguments_as_they_are(self, sampler: Sampler) -> None:
        history, pending = _history(12, 2), _points(3, 2)
        next(sampler.ask(history, pending, 2, 0))
        assert (history, pending) == (_history(12, 2), _points(3, 2))

    @pytest.mark.parametrize("num_observed", [0, 12])
    def test_never_asks_for_a_point_that_is_pending(self, sampler: Sampler, num_observed: int) -> None:
        history, pending = _history(num_observed, 2), list[Unit]()
        for seed in range(10):
            unit = next(sampler.ask(history, pending, 2, seed))
            assert unit not in pending
            pending.append(unit)

    @pytest.mark.parametrize("share", [0.5, 1.0], ids=["half", "all"])
    def test_accepts_points_without_a_loss(self, sampler: Sampler, share: float) -> None:
        history = [
            Observation(unit=observation.unit, loss=None if i < share * 30 else observation.loss)
            for i, observation in enumerate(_history(30, 3))
        ]
        assert all(0 <= coordinate <= 1 for coordinate in next(sampler.ask(history, [], 3, 0)))

    def test_accepts_the_corners_of_the_cube_and_equal_points(self, sampler: Sampler) -> None:
        corners = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)] * 5
        history = [Observation(unit=unit, loss=1.0) for unit in corners]
        assert all(0 <= coordinate <= 1 for coordinate in next(sampler.ask(history, corners, 2, 0)))

    def test_accepts_losses_of_any_size(self, sampler: Sampler) -> None:
        losses = (1e-300, 1e300, -1e300, 0.0) * 5
        history = [Observation(unit=unit, loss=loss) for unit, loss in zip(_points(20, 2), losses, strict=True)]
        assert all(0 <= coordinate <= 1 for coordinate in next(sampler.ask(history, [], 2, 0)))


def _points(number: int, num_coordinates: int) -> list[Unit]:
    draw = random.Random(number)
    return [tuple(draw.random() for _ in range(num_coordinates)) for _ in range(number)]


def _history(number: int, num_coordinates: int) -> list[Observation]:
    return [Observation(unit=unit, loss=sum(unit)) for unit in _points(number, num_coordinates)]
