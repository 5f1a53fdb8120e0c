import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.analysis.hypervolume import MAX_FRONT, FrontTooLarge, growth, hypervolume
from search.analysis.skyline import Point

SIDE = 4
"""Points have whole coordinates from 0 to this, which is the reference in all of them: volumes count cells."""


def _cells(points: list[Point], num_coordinates: int) -> int:
    """How many unit cells some point dominates, one by one."""
    corners = itertools.product(range(SIDE), repeat=num_coordinates)
    return sum(any(all(a <= b for a, b in zip(point, corner, strict=True)) for point in points) for corner in corners)


def _lists(num_coordinates: int) -> st.SearchStrategy[list[Point]]:
    # As large as the reference, or larger, too: such points dominate no cell.
    value = st.integers(0, SIDE + 1).map(float)
    return st.lists(st.tuples(*[value] * num_coordinates), min_size=1, max_size=12)


_points = st.integers(2, 4).flatmap(_lists)


class TestHypervolume:
    @given(_points)
    def test_counts_the_cells_that_are_dominated(self, points: list[Point]) -> None:
        num_coordinates = len(points[0])
        assert hypervolume(points, (float(SIDE),) * num_coordinates) == _cells(points, num_coordinates)

    @pytest.mark.parametrize(
        ("points", "reference", "expected"),
        [
            ([], (1.0, 1.0), 0.0),
            ([(0.0, 0.0)], (2.0, 3.0), 6.0),
            ([(0.0, 2.0), (1.0, 0.0)], (2.0, 3.0), 2 + 2.0),
            ([(0.0, 0.5), (0.5, 0.0)], (1.0, 1.0), 0.75),
            ([(0.0, 0.0, 0.5), (0.5, 0.5, 0.0)], (1.0, 1.0, 1.0), 0.5 + 0.25 - 0.125),
            ([(0.0, 0.0, 0.0, 0.0), (0.5, 0.5, 0.5, 0.5)], (2.0, 2.0, 2.0, 2.0), 16.0),
            ([(-1.0, -1.0), (3.0, -5.0), (1.0, 0.0)], (1.0, 1.0), 4.0),
        ],
    )
    def test_is_that_of_a_few_boxes(self, points: list[Point], reference: Point, expected: float) -> None:
        assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("num_coordinates", [2, 3, 4])
    def test_is_the_share_of_darts_that_are_dominated(self, num_coordinates: int) -> None:
        draw = random.Random(num_coordinates)
        # On a sphere around the reference: none dominates another.
        points = [_on_sphere(draw, num_coordinates) for _ in range(60)]
        reference = (1.0,) * num_coordinates
        darts = [tuple(draw.random() for _ in reference) for _ in range(4000)]
        hits = sum(any(all(a <= b for a, b in zip(p, dart, strict=True)) for p in points) for dart in darts)
        share = hits / len(darts)
        error = math.sqrt(share * (1 - share) / len(darts))
        assert hypervolume(points, reference) == pytest.approx(share, abs=4 * error)

    @given(_points, st.randoms(use_true_random=False))
    def test_does_not_depend_on_the_order(self, points: list[Point], draw: random.Random) -> None:
        shuffled = draw.sample(points, len(points))
        reference = (float(SIDE),) * len(points[0])
        assert hypervolume(shuffled, reference) == hypervolume(points, reference)


class TestGrowth:
    @given(_points)
    def test_is_the_volume_after_every_point(self, points: list[Point]) -> None:
        num_coordinates = len(points[0])
        expected = [_cells(points[: number + 1], num_coordinates) for number in range(len(points))]
        assert list(growth(points, (float(SIDE),) * num_coordinates)) == expected

    @given(st.integers(2, 4).flatmap(lambda n: st.lists(st.tuples(*[st.floats(-50, 50)] * n), min_size=1, max_size=15)))
    def test_never_falls(self, points: list[Point]) -> None:
        volumes = list(growth(points, (0.0,) * len(points[0])))
        assert volumes == sorted(volumes)
        assert volumes[-1] == pytest.approx(hypervolume(points, (0.0,) * len(points[0])), rel=1e-9, abs=1e-6)

    def test_of_a_front_that_would_take_minutes_is_refused(self) -> None:
        draw = random.Random(0)
        points = [_on_sphere(draw, 3) for _ in range(MAX_FRONT + 1)]
        assert len(list(growth(points[:50], (1.0,) * 3))) == 50
        with pytest.raises(FrontTooLarge, match="at most 500 points"):
            list(growth(points, (1.0,) * 3))

    def test_of_a_long_front_of_two_coordinates_is_not(self) -> None:
        steps = 2 * MAX_FRONT
        points = [(float(place), float(steps - place)) for place in range(steps)]
        volumes = list(growth(points, (float(steps), float(steps + 1))))
        # Of every row of cells, those to the right of its step.
        assert volumes[-1] == sum(range(1, steps + 1))

    def test_of_nothing_is_nothing(self) -> None:
        assert list(growth([], (1.0, 1.0))) == []


def _on_sphere(draw: random.Random, num_coordinates: int) -> Point:
    direction = [abs(draw.gauss(0, 1)) for _ in range(num_coordinates)]
    return tuple(1 - each / math.hypot(*direction) for each in direction)
