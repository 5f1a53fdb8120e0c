from hypothesis import given
from hypothesis import strategies as st

from search.analysis.skyline import Point, skyline


def _beats(one: Point, other: Point) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def _points(num_coordinates: int) -> st.SearchStrategy[list[Point]]:
    # Few values, so that there are ties in every coordinate; infinities and both zeros among them.
    value = st.one_of(st.sampled_from((-1.0, -0.0, 0.0, 0.5, 1.0, 2.0, float("inf"))), st.integers(0, 4).map(float))
    return st.lists(st.tuples(*[value] * num_coordinates), max_size=40)


class TestSkyline:
    @given(st.integers(1, 4).flatmap(_points))
    def test_is_every_point_that_no_other_beats(self, points: list[Point]) -> None:
        assert skyline(points) == {point for point in points if not any(_beats(other, point) for other in points)}

    def test_of_points_that_trade_one_coordinate_for_another_is_all_of_them(self) -> None:
        points = {(float(number), float(-number), 0.0) for number in range(100)}
        assert skyline(points) == points

    def test_of_nothing_is_nothing(self) -> None:
        assert skyline([]) == set()
