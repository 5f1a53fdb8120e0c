"""How much of a space a front dominates, up to a reference point, and how that grew: one figure for a whole front.

Lower is better in every coordinate. Exact, for two to four coordinates: the volume that points dominate is what each adds to
those before it, and what one adds is its own box without what the others dominate of that box, which is the volume of the
others moved into it (While et al., IEEE Trans. Evol. Comput. 16, 2012). In two coordinates a front is a staircase. In pure
Python, because who answers for it has nothing else.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from operator import le

from search.analysis.skyline import Point, skyline

MAX_FRONT = 500
"""How many points a front of more than two coordinates may have: the time that all of them take grows with its square, and
this is a second."""


class FrontTooLarge(Exception):
    """A front has more points than are computed with."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"expected a front of at most {limit} points")
        self.limit = limit


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """The volume of all that lies between any of some points and the reference. What does not beat the reference in every
    coordinate dominates nothing of it.

    Raises:
        FrontTooLarge: of four coordinates more than ``MAX_FRONT`` points are on the front of the first three at once.
    """
    by_last = sorted(_inside(points, reference), key=lambda point: point[-1])
    if len(reference) == 2:
        return sum(_gains(by_last, reference))
    gains = _gains((point[:-1] for point in by_last), reference[:-1])
    return sum(gain * (reference[-1] - point[-1]) for gain, point in zip(gains, by_last, strict=True))


def growth(points: Iterable[Point], reference: Point) -> Iterator[float]:
    """The hypervolume after each of some points, which come one after the other: it never falls.

    Raises:
        FrontTooLarge: of more than two coordinates more than ``MAX_FRONT`` points are on the front at once.
    """
    volume = 0.0
    for gain in _gains(points, reference):
        volume += gain
        yield volume


def _inside(points: Iterable[Point], reference: Point) -> Iterator[Point]:
    return (point for point in points if all(own < limit for own, limit in zip(point, reference, strict=True)))


def _gains(points: Iterable[Point], reference: Point) -> Iterator[float]:
    """What each of the points adds to what those before it dominate."""
    gain = _Stairs(reference).gain if len(reference) == 2 else _Front(reference).gain
    for point in points:
        yield gain(point) if next(_inside([point], reference), None) else 0.0


class _Stairs:
    """A front of two coordinates, by the first one: the second falls from one step to the next."""

    def __init__(self, reference: Point) -> None:
        self._limit, self._floor = reference
        self._x: list[float] = []
        self._y: list[float] = []

    def gain(self, point: Point) -> float:
        """Take a point in; the area that it adds."""
        x, y = point
        first = last = bisect_left(self._x, x)
        height = self._y[first - 1] if first else self._floor
        if height <= y or (first < len(self._x) and self._x[first] == x and self._y[first] <= y):
            return 0.0
        area, left = 0.0, x
        while last < len(self._x) and self._y[last] >= y:
            area += (self._x[last] - left) * (height - y)
            left, height = self._x[last], self._y[last]
            last += 1
        end = self._x[last] if last < len(self._x) else self._limit
        self._x[first:last], self._y[first:last] = [x], [y]
        return area + (end - left) * (height - y)


class _Front:
    """A front of more coordinates."""

    def __init__(self, reference: Point) -> None:
        self._reference = reference
        self._points: list[Point] = []

    def gain(self, point: Point) -> float:
        """Take a point in; the volume that it adds."""
        if any(all(map(le, other, point)) for other in self._points):
            return 0.0
        moved = skyline(tuple(map(max, point, other)) for other in self._points)
        self._points = [other for other in self._points if not all(map(le, point, other))]
        self._points.append(point)
        if len(self._points) > MAX_FRONT:
            raise FrontTooLarge(MAX_FRONT)
        box = math.prod(limit - own for own, limit in zip(point, self._reference, strict=True))
        return max(0.0, box - hypervolume(moved, self._reference))
