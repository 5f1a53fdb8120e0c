"""Regions of the space of structures, and the unit cube that samplers see of each.

A theta has five degrees of freedom: gamma, how the rest of the input is split between alpha and beta, phi, how the rest
of the output is split between delta and epsilon, and the rank. A region bounds its seven axes and ties some of them. A point
of the cube says what is still free, once each: every coordinate runs through the interval that those before it leave.

A theta and its swap are the same operators and one point of the cube. Where a region does not tell the two factors apart, it
is drawn with beta at most alpha, and the canonical form is taken of that; where it does, the canonical form itself is drawn.

The named designs lie on faces, which a uniform draw from the inside never meets. So a fifth of a coordinate belongs to each
face (``FACE``): within it nothing changes, and a sampler that likes a face finds it without hitting a point exactly. A face
is where an exponent is 0; a bound above 0 is only where a coordinate ends.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from einlayers.errors import FieldError
from einlayers.theta import AXES, Theta
from search.polytopes import ZERO, Form, Polytope, at_most, between

Unit = tuple[float, ...]
"""A point of the unit cube."""

Interval = tuple[float, float]

FACE = 0.2
"""The part of a coordinate that belongs to a face: its probability under a uniform draw."""

_COORDINATES = ("gamma", "beta", "phi", "delta", "rho")
"""The axes that are drawn, in their order."""

_FORMS: Mapping[str, Form] = {
    "alpha": (-1, -1, 0, 0, 0, 1),
    "beta": (0, 1, 0, 0, 0, 0),
    "gamma": (1, 0, 0, 0, 0, 0),
    "delta": (0, 0, 0, 1, 0, 0),
    "epsilon": (0, 0, -1, -1, 0, 1),
    "phi": (0, 0, 1, 0, 0, 0),
    "rho": (0, 0, 0, 0, 1, 0),
}
"""The axes as linear functions of these."""

Order = tuple[tuple[str, str], ...]
"""Pairs of axes of which the first is at most the second."""

_CANONICAL: tuple[Order, ...] = (
    (("beta", "alpha"), ("beta", "epsilon"), ("rho", "alpha"), ("rho", "epsilon")),
    (("delta", "alpha"), ("delta", "epsilon"), ("rho", "alpha"), ("rho", "epsilon")),
)
"""Canonical forms: min(beta, delta) <= min(alpha, epsilon), and rho beyond which a structure costs more than dense."""

_FOLDED: tuple[Order, ...] = (
    (("beta", "alpha"), ("rho", "alpha"), ("rho", "epsilon")),
    (("beta", "alpha"), ("rho", "beta"), ("rho", "delta")),
)
"""One form of every structure, the canonical one or its swap: that with beta <= alpha."""

_EVEN: Mapping[tuple[str, str], tuple[str, str]] = {
    ("alpha", "beta"): ("delta", "epsilon"),
    ("delta", "epsilon"): ("beta", "alpha"),
}
"""Where one side is always split evenly both forms can be canonical. Then the other side is drawn in this order, whichever
form it is that keeps the bounds."""

_SWAPPED: Mapping[str, str] = {axis: axis for axis in AXES} | {
    one: other for pair in (("alpha", "beta"), ("delta", "epsilon")) for one, other in (pair, pair[::-1])
}
"""What the axes are called in the swap."""


@dataclass(frozen=True, slots=True)
class _Coordinate:
    """A share in [0, 1] as a coordinate, a part of which belongs to the share 0, and a part to the share 1."""

    zero: float = 0.0
    one: float = 0.0

    def to_share(self, u: float) -> float:
        return min(1.0, max(0.0, (u - self.zero) / (1 - self.zero - self.one)))

    def to_unit(self, share: float) -> float:
        if share < ZERO:
            return self.zero / 2
        if share > 1 - ZERO:
            return 1 - self.one / 2
        return self.zero + share * (1 - self.zero - self.one)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """The thetas that cost at most what dense costs and keep these bounds, in their canonical form.

    ``bounds``: the least and the greatest exponent of every axis, in the order of ``AXES``; ``ties``: pairs of axes that are
    equal; ``rank_sum``: bounds of gamma + phi + rho, which is psi where beta and delta are 0 and it is at most 1
    (2410.02117, section 4). Where both forms of a structure are canonical one that keeps the bounds is enough, and which of
    them ``to_theta`` gives is decided by ``Theta.canonical``. ``has_faces``: whether faces get their part of a coordinate.

    Raises:
        FieldError: no theta keeps the bounds.
    """

    bounds: tuple[Interval, ...] = ((0.0, 1.0),) * len(AXES)
    ties: tuple[tuple[str, str], ...] = ()
    rank_sum: Interval = (0.0, 3.0)
    has_faces: bool = True
    _pieces: tuple[Polytope, ...] = field(init=False, repr=False, compare=False)
    _coordinates: tuple[_Coordinate | None, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pieces = _largest(map(self._piece, _FOLDED if self._is_folded else _CANONICAL))
        if not pieces:
            raise FieldError("bounds", expected="bounds that some theta keeps", got=self.bounds)
        for even, (least, most) in _EVEN.items():
            if all(piece.keeps_at_zero(at_most(*(_FORMS[axis] for axis in even))) for piece in pieces):
                order = (even, even[::-1], (least, most), ("rho", "alpha"), ("rho", "epsilon"))
                pieces = _largest([self._piece(order), self._piece((*order, (even[0], least)), swapped=True)])
        free = zip(_COORDINATES, pieces[0].free, strict=True)
        coordinates = tuple(self._coordinate(axis) if is_free else None for axis, is_free in free)
        object.__setattr__(self, "_pieces", pieces)
        object.__setattr__(self, "_coordinates", coordinates)

    @property
    def num_coordinates(self) -> int:
        """As many as the bounds leave free."""
        return sum(coordinate is not None for coordinate in self._coordinates)

    def within(self, bounds: Mapping[str, Interval], ties: Sequence[tuple[str, str]] = ()) -> "Region":
        """The part of this region that keeps these bounds and ties too.

        Raises:
            FieldError: there is none.
        """
        both = dict(zip(AXES, self.bounds, strict=True))
        for axis, (low, high) in bounds.items():
            both[axis] = (max(low, both[axis][0]), min(high, both[axis][1]))
        return replace(self, bounds=tuple(both.values()), ties=(*self.ties, *ties))

    def span(self, axis: str) -> Interval:
        """The least and the greatest exponent that an axis has here, in canonical forms."""
        intervals = []
        for order in _CANONICAL:
            # The axis itself is the first coordinate, and the last that is left.
            itself = tuple(a - b for a, b in zip((1, 0, 0, 0, 0, 0, 0), (0, *_FORMS[axis]), strict=True))
            forms = [*((0, *form) for form in self._forms(order)), *between(itself, 0, 0)]
            if piece := Polytope.of(forms, 1 + len(_COORDINATES)):
                intervals.append(piece.interval(()))
        return min(low for low, _ in intervals), max(high for _, high in intervals)

    def to_theta(self, unit: Unit) -> Theta:
        """The canonical theta at a point of the cube."""
        units, shares = iter(unit), list[float]()
        for coordinate in self._coordinates:
            shares.append(0.0 if coordinate is None else coordinate.to_share(next(units)))
        gamma, beta, phi, delta, rho = self._walk(lambda i, low, high: low + (high - low) * shares[i])
        alpha, epsilon = 1 - gamma - beta, 1 - phi - delta
        exponents = (alpha, beta, gamma, delta, epsilon, phi, rho)
        return Theta.of([min(1.0, max(0.0, exponent)) for exponent in exponents]).canonical()

    def to_unit(self, theta: Theta) -> Unit | None:
        """A point of a theta in any of its forms, the middle of every face that it lies on; None where it is not in here."""
        return _place(self, theta.exponents)

    def _place(self, theta: Theta) -> Unit | None:
        """The point of this form of a theta."""
        point: list[float] = [getattr(theta, axis) for axis in _COORDINATES]
        shares, is_inside = list[float](), True

        def choose(i: int, low: float, high: float) -> float:
            nonlocal is_inside
            is_inside = is_inside and low - ZERO <= point[i] <= high + ZERO
            shares.append(_share(point[i] - low, high - point[i]))
            return point[i]

        self._walk(choose)
        if not is_inside:
            return None
        placed = zip(self._coordinates, shares, strict=True)
        return tuple(coordinate.to_unit(share) for coordinate, share in placed if coordinate is not None)

    def _walk(self, choose: Callable[[int, float, float], float]) -> Sequence[float]:
        """The point that ``choose`` makes, coordinate after coordinate, from the interval that is left for each.

        The intervals of the pieces at a point always meet, so that what they cover is an interval.
        """
        pieces, point = self._pieces, list[float]()
        for i in range(len(_COORDINATES)):
            intervals = [piece.interval(point) for piece in pieces]
            low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
            point.append(choose(i, low, max(low, high)))
            gaps = [max(0.0, low - point[-1], point[-1] - high) for low, high in intervals]
            pieces = tuple(piece for piece, gap in zip(pieces, gaps, strict=True) if gap <= min(gaps) + ZERO)
        return point

    @property
    def _is_folded(self) -> bool:
        """Whether nothing tells the two factors apart."""
        bounds = dict(zip(AXES, self.bounds, strict=True))
        are_split = any(bounds[axis] != (0, 1) for axis in ("alpha", "beta", "delta", "epsilon"))
        return not are_split and bounds["rho"][0] == 0 and {*self.ties} <= {("gamma", "phi")}

    def _piece(self, order: Order, *, swapped: bool = False) -> Polytope | None:
        return Polytope.of(self._forms(order, swapped=swapped), len(_COORDINATES))

    def _forms(self, order: Order, *, swapped: bool = False) -> Iterator[Form]:
        """Linear functions that are at most 0 in this region, or in its swap, with the axes in this order."""
        form = {axis: _FORMS[_SWAPPED[axis] if swapped else axis] for axis in AXES}
        for axis, (low, high) in zip(AXES, self.bounds, strict=True):
            yield from between(form[axis], low, high)
        for one, other in self.ties:
            yield from (at_most(form[one], form[other]), at_most(form[other], form[one]))
        yield from between((1, 0, 1, 0, 1, 0), *self.rank_sum)
        yield from (at_most(_FORMS[one], _FORMS[other]) for one, other in order)

    def _coordinate(self, axis: str) -> _Coordinate:
        if not self.has_faces:
            return _Coordinate()
        # Where delta ends above, the swap has no delta.
        swapped = axis == "delta" and self._is_folded
        return _Coordinate(zero=FACE if self.span(axis)[0] <= ZERO else 0.0, one=FACE if swapped else 0.0)


@lru_cache(maxsize=65536)
def _place(region: Region, exponents: tuple[float, ...]) -> Unit | None:
    # Every ask places the whole history anew; it would be the same work every time. By exponents, as all forms of dense
    # are equal thetas but lie in different subspaces.
    theta = Theta.of(exponents).canonical().normalised()
    forms = (theta, theta.swapped()) if theta.beta <= theta.alpha else (theta.swapped(), theta)
    return next((unit for form in forms if (unit := region._place(form)) is not None), None)


def _largest(pieces: Iterable[Polytope | None]) -> tuple[Polytope, ...]:
    """Those of the most dimensions: where bounds just touch there is a piece of fewer, and in that the coordinates of the
    others would change nothing."""
    found = [piece for piece in pieces if piece is not None]
    free = max((piece.free for piece in found), key=sum, default=())
    return tuple(piece for piece in found if piece.free == free)


def _share(part: float, other: float) -> float:
    """``part`` of what both are, in [0, 1]; 0 where there is nothing to share."""
    whole = part + other
    return min(1.0, max(0.0, part / whole)) if whole > ZERO else 0.0


_NONE = (0.0, 0.0)
_BTT = {"beta": _NONE, "delta": _NONE}

SUBSPACES: Mapping[str, Region] = {
    "full": Region(),
    "btt": Region().within(_BTT),
    "full-rank-btt": Region(rank_sum=(1, 3)).within(_BTT),
    "low-rank": Region().within({"gamma": _NONE, "phi": _NONE, **_BTT}),
    "kronecker": Region().within({"gamma": _NONE, "phi": _NONE, "rho": _NONE}),
    "tensor-train": Region().within({"gamma": _NONE, "phi": _NONE}),
    # By the number of its dense blocks, d ** gamma from 1 to the root of d (2204.00595, 3.1), and the rank that fills them.
    "monarch": Region(rank_sum=(1, 1), has_faces=False).within(_BTT, [("gamma", "phi")]),
}
"""The regions that a search can name."""
