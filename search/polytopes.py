"""Polytopes in the unit cube, walked through one coordinate after the other.

Fourier-Motzkin elimination removes the last coordinate from the inequalities, then the one before it, and so on. What
constrains a coordinate at its turn is the interval that those before it leave, so that every choice can be completed.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

Form = tuple[float, ...]
"""A linear function: the coefficient of every coordinate, then the constant."""

ZERO = 1e-9
"""What is less is rounding."""


def between(form: Form, low: float, high: float) -> list[Form]:
    """What is at most 0 where ``form`` is from ``low`` to ``high``."""
    *coefficients, constant = form
    return [(*coefficients, constant - high), (*(-c for c in coefficients), low - constant)]


def at_most(one: Form, other: Form) -> Form:
    """What is at most 0 where ``one`` is at most ``other``."""
    return tuple(a - b for a, b in zip(one, other, strict=True))


Bound = tuple[float, tuple[tuple[int, float], ...]]
"""A linear function of the coordinates before one: a constant, and the places that count with their coefficients."""


@dataclass(frozen=True, slots=True)
class Polytope:
    """The points of the unit cube at which none of some linear functions is positive.

    ``lower`` and ``upper``: the bounds of each coordinate.
    """

    lower: tuple[tuple[Bound, ...], ...]
    upper: tuple[tuple[Bound, ...], ...]

    @classmethod
    def of(cls, forms: Iterable[Form], num_coordinates: int) -> "Polytope | None":
        """The polytope where ``forms`` are at most 0; None where it is empty."""
        lower, upper, rest = list[tuple[Bound, ...]](), list[tuple[Bound, ...]](), _needed(forms)
        for last in reversed(range(num_coordinates)):
            lows = [(0.0,) * (last + 1), *(_solved(form, last) for form in rest if form[last] < -ZERO)]
            highs = [(*(0.0,) * last, 1.0), *(_solved(form, last) for form in rest if form[last] > ZERO)]
            others = [(*form[:last], form[-1]) for form in rest if abs(form[last]) <= ZERO]
            rest = _needed([*others, *(at_most(low, high) for low in lows for high in highs)])
            lower.append(tuple(map(_bound, lows)))
            upper.append(tuple(map(_bound, highs)))
        if any(form[-1] > ZERO for form in rest):
            return None
        return cls(tuple(reversed(lower)), tuple(reversed(upper)))

    def interval(self, before: Sequence[float]) -> tuple[float, float]:
        """The least and the greatest value of the next coordinate, given those before it."""
        place = len(before)
        low = max([_value(bound, before) for bound in self.lower[place]])
        return low, min([_value(bound, before) for bound in self.upper[place]])

    @property
    def free(self) -> tuple[bool, ...]:
        """Which coordinates are not determined by those before them.

        The lengths of these intervals are concave, so that none is 0 in the middle without being 0 everywhere.
        """
        middle = self._spanning[0]
        intervals = [self.interval(middle[:place]) for place in range(len(middle))]
        return tuple(high - low > ZERO for low, high in intervals)

    def keeps_at_zero(self, form: Form) -> bool:
        """Whether a linear function is 0 all over it."""
        return all(abs(_value(_bound(form), point)) <= ZERO for point in self._spanning)

    @property
    def _spanning(self) -> list[list[float]]:
        """A point in its middle, and for every free coordinate another that is the first to differ there."""
        points = list[list[float]]()
        for moved in (None, *range(len(self.lower))):
            point = list[float]()
            for place in range(len(self.lower)):
                low, high = self.interval(point)
                point.append(low + (high - low) / (4 if place == moved else 2))
            points.append(point)
        return points


def _solved(form: Form, last: int) -> Form:
    """The bound of coordinate ``last`` that says ``form <= 0``."""
    return tuple(-form[i] / form[last] + 0.0 for i in (*range(last), -1))


def _bound(form: Form) -> Bound:
    return form[-1], tuple((i, coefficient) for i, coefficient in enumerate(form[:-1]) if abs(coefficient) > ZERO)


def _value(bound: Bound, point: Sequence[float]) -> float:
    value, terms = bound
    for i, coefficient in terms:
        value += coefficient * point[i]
    return value


def _needed(forms: Iterable[Form]) -> Collection[Form]:
    """Without those that nothing in the cube makes positive, and of parallel ones the strictest."""
    strictest = dict[Form, Form]()
    for form in forms:
        *coefficients, constant = form
        if constant + sum(max(0.0, coefficient) for coefficient in coefficients) <= 0:
            continue
        scale = max(map(abs, coefficients), default=0.0)
        if scale > ZERO:
            form = tuple(x / scale for x in form)
        direction = tuple(round(x, 9) + 0.0 for x in form[:-1])
        if direction not in strictest or form[-1] > strictest[direction][-1]:
            strictest[direction] = form
    return strictest.values()
