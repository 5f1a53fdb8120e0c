"""The points that no other dominates. Lower is better in every coordinate."""

from collections.abc import Iterable
from itertools import groupby
from operator import le

Point = tuple[float, ...]


def skyline(points: Iterable[Point]) -> set[Point]:
    """The points that no other one beats: with none of its coordinates higher, and not all of them equal.

    A sweep over the first coordinate: whatever beats a point comes before it, so a point is beaten if and only if one
    before it is nowhere higher in the rest. Of the rests that were seen, the lowest are enough.
    """
    found: set[Point] = set()
    lowest: list[Point] = []
    for point, _ in groupby(sorted(points)):
        rest = point[1:]
        if not _is_beaten(rest, lowest):
            found.add(point)
            lowest = [rest, *(other for other in lowest if not all(map(le, rest, other)))]
    return found


def _is_beaten(rest: Point, others: list[Point]) -> bool:
    """Whether one of the others is nowhere higher. It moves to the front: what beats one point beats many."""
    for place, other in enumerate(others):
        if all(map(le, other, rest)):
            if place:
                others.insert(0, others.pop(place))
            return True
    return False
