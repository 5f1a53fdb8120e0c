"""From exponents to integers: the axis sizes of one layer.

Two policies. ``round`` is the papers' (each axis rounded on its own; the layer pads or drops what does not fit) and is
there to compare with them. ``exact`` never drops a feature: it takes the integer axes nearest to theta in log space,
pays for padding, and never lets the rank fall below what theta promises when that is full rank.
"""

import math
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Literal, get_args

from einlayers.errors import FieldError
from einlayers.rank import Axes, generic_rank
from einlayers.theta import AXES, Theta

Policy = Literal["exact", "round"]

MAX_WIDTH = 2**20
"""The widest layer that ``resolve`` takes; beyond it the search over axes would no longer be instant."""

_PADDING_BASE = 0.25
_PADDING_PRICE = 10.0
"""What padding costs in units of squared log distance: 512 stays 16 x 32 and 44 stays 4 x 11, but 997 becomes 27 x 37."""

_CANDIDATES = 8
"""How many axis triples per side enter the joint choice; more than the best is needed only for the rank."""

_TIE_DIGITS = 9
_TIE = 10.0**-_TIE_DIGITS
"""Scores nearer to each other than this are equal."""

_ZERO = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """The seven axis sizes of one layer that maps ``d_in`` features to ``d_out``, and what they pad or drop."""

    alpha: int
    beta: int
    gamma: int
    delta: int
    epsilon: int
    phi: int
    rho: int
    d_in: int
    d_out: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise FieldError(name, expected="a positive size", got=getattr(self, name))

    @classmethod
    def of(cls, axes: Axes, d_in: int, d_out: int) -> "Dims":
        """The dims of seven sizes in theta's order, for a layer from ``d_in`` to ``d_out`` features."""
        return cls(**dict(zip(AXES, axes, strict=True)), d_in=d_in, d_out=d_out)

    @property
    def axes(self) -> Axes:
        """The seven sizes in theta's order."""
        return (self.alpha, self.beta, self.gamma, self.delta, self.epsilon, self.phi, self.rho)

    @property
    def theta(self) -> Theta:
        """The exponents that these sizes stand for: their shares of each side's logarithm."""
        log_d = math.log(max(2, min(self.d_in, self.d_out)))
        return Theta.of(
            [
                *_exponents(self.alpha, self.beta, self.gamma),
                *_exponents(self.delta, self.epsilon, self.phi),
                min(1.0, math.log(self.rho) / log_d),
            ]
        )

    @property
    def is_dense(self) -> bool:
        """Whether one factor alone is any matrix, as in a ``Theta`` that is dense: the other then adds parameters, but no
        matrices. Small exponents come to this where their axes round to 1. Never where features are dropped."""
        keeps_all = self.inputs >= self.d_in and self.outputs >= self.d_out
        return keeps_all and (self.beta * self.epsilon == 1 or self.alpha * self.delta == 1)

    @property
    def shape_A(self) -> tuple[int, int, int, int, int]:
        """``(phi, delta, rho, gamma, alpha)``"""
        return (self.phi, self.delta, self.rho, self.gamma, self.alpha)

    @property
    def shape_B(self) -> tuple[int, int, int, int, int]:
        """``(phi, epsilon, rho, gamma, beta)``"""
        return (self.phi, self.epsilon, self.rho, self.gamma, self.beta)

    def swapped(self) -> "Dims":
        """The axes of ``theta.swapped()``."""
        return replace(self, alpha=self.beta, beta=self.alpha, delta=self.epsilon, epsilon=self.delta)

    @property
    def inputs(self) -> int:
        """How many input features the axes hold; more than ``d_in`` is padding, fewer drops features (policy round)."""
        return self.alpha * self.beta * self.gamma

    @property
    def outputs(self) -> int:
        """How many output features the axes hold; more than ``d_out`` is cropped, fewer leaves dead outputs."""
        return self.delta * self.epsilon * self.phi

    @property
    def padding_in(self) -> float:
        """Padded inputs as a share of ``d_in``; negative where inputs are dropped."""
        return self.inputs / self.d_in - 1

    @property
    def padding_out(self) -> float:
        """Padded outputs as a share of ``d_out``; negative where outputs are dead."""
        return self.outputs / self.d_out - 1


def resolve(theta: Theta | str, d_in: int, d_out: int, policy: Policy = "exact") -> Dims:
    """The axis sizes of ``theta``, a point or its name or text, for a layer from ``d_in`` to ``d_out`` features.

    Raises:
        FieldError: a width is not an integer in 1..2**20, or the theta or the policy is unknown.
    """
    theta = Theta.parse(theta)
    check_size("d_in", d_in)
    check_size("d_out", d_out)
    if policy not in get_args(Policy):
        raise FieldError("policy", expected=f"one of {get_args(Policy)}", got=policy)
    if policy == "round":
        return _round(theta, d_in, d_out)
    canonical, is_swapped = _exact_form(theta.exponents)
    dims = _exact(canonical, d_in, d_out)
    return dims.swapped() if is_swapped else dims


def check_size(name: str, size: int, *, largest: int = MAX_WIDTH) -> int:
    """The size, if it is a whole number from 1 to ``largest``.

    Raises:
        FieldError: it is not; the error carries ``name``.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= largest:
        raise FieldError(name, expected=f"a whole number from 1 to {largest}", got=size)
    return size


def _exponents(first: int, second: int, third: int) -> tuple[float, float, float]:
    log_d = math.log(first * second * third)
    if log_d == 0:
        return (0.0, 0.0, 1.0)
    return (math.log(first) / log_d, math.log(second) / log_d, math.log(third) / log_d)


@lru_cache(maxsize=4096)
def _exact_form(exponents: tuple[float, ...]) -> tuple[tuple[float, ...], bool]:
    """The canonical, exactly normalised exponents, and whether that exchanged the factors: theta and swap get one answer."""
    canonical = Theta.of(exponents).canonical()
    return canonical.normalised().exponents, canonical.exponents != exponents


def _round(theta: Theta, d_in: int, d_out: int) -> Dims:
    # Python's round is half-even, as in the reference code (2410.02117), so this is bit for bit the papers' choice.
    return Dims(
        alpha=round(d_in**theta.alpha),
        beta=round(d_in**theta.beta),
        gamma=round(d_in**theta.gamma),
        delta=round(d_out**theta.delta),
        epsilon=round(d_out**theta.epsilon),
        phi=round(d_out**theta.phi),
        rho=round(min(d_in, d_out) ** theta.rho),
        d_in=d_in,
        d_out=d_out,
    )


@lru_cache(maxsize=65536)
def _exact(exponents: tuple[float, ...], d_in: int, d_out: int) -> Dims:
    ranks = _ranks(exponents[6], min(d_in, d_out))
    # The score is a sum, so the best of each group (with its ties) is the best of all, unless the rank objects.
    groups = (_triples(exponents[:3], d_in, 0.0), _triples(exponents[3:6], d_out, 0.0), ranks)
    axes = _ordered([choice for choice in group if choice[0] == group[0][0]] for group in groups)[0]
    if _promises_full_rank(exponents, d_in, d_out) and generic_rank(axes, d_in, d_out) < min(d_in, d_out):
        groups = (_triples(exponents[:3], d_in, math.inf), _triples(exponents[3:6], d_out, math.inf), ranks)
        full = (other for other in _ordered(groups) if generic_rank(other, d_in, d_out) == min(d_in, d_out))
        axes = next(full, axes)
    return Dims.of(axes, d_in, d_out)


def _ordered(groups: Iterable[Sequence[tuple[float, Sequence[int]]]]) -> list[Axes]:
    """Every combination of one input triple, one output triple and one rank: best score first, then cheapest."""
    combined = []
    for inputs, outputs, ranks in product(*groups):
        (alpha, beta, gamma), (delta, epsilon, phi), (rho,) = inputs[1], outputs[1], ranks[1]
        axes = (alpha, beta, gamma, delta, epsilon, phi, rho)
        combined.append((inputs[0] + outputs[0] + ranks[0], _multiplications(axes), axes))
    return [axes for _, _, axes in sorted(combined)]


@lru_cache(maxsize=65536)
def _triples(exponents: tuple[float, ...], d: int, margin: float) -> list[tuple[float, Sequence[int]]]:
    """The best axis triples of one side and their scores, none worse than the best by more than ``margin``.

    An axis of exponent 0 has size 1.
    """
    log_d = math.log(d)
    # The largest axis is what the others leave over: every product is then at least d, and next to it.
    *leading, last = sorted((i for i in range(3) if exponents[i] > _ZERO), key=lambda i: exponents[i])
    options = [_deviations(d ** exponents[i], exponents[i] * log_d, len(leading)) for i in leading]
    firsts, seconds = [*options, [(0.0, 1)], [(0.0, 1)]][:2]
    log_last = exponents[last] * log_d
    best: list[tuple[float, int, int, int]] = []
    limit = math.inf
    for first_deviation, first in firsts:
        if first_deviation > limit:
            break
        for second_deviation, second in seconds:
            score = first_deviation + second_deviation
            if score > limit:
                break
            rest = -(-d // (first * second))
            score += (math.log(rest) - log_last) ** 2
            padded = rest * first * second
            if padded != d:
                score += _PADDING_BASE + _PADDING_PRICE * (padded / d - 1)
            if score <= limit:
                insort(best, (score, first, second, rest))
                del best[_CANDIDATES:]
                limit = best[0][0] + margin + _TIE
                if len(best) == _CANDIDATES:
                    limit = min(limit, best[-1][0])
    triples: list[tuple[float, Sequence[int]]] = []
    for score, *sizes, rest in best:
        triple = [1, 1, 1]
        triple[last] = rest
        for i, size in zip(leading, sizes, strict=False):
            triple[i] = size
        # Rounding makes ties between mirrored triples exact, so that the cheaper one wins and not float noise.
        triples.append((round(score, _TIE_DIGITS), tuple(triple)))
    return sorted(triples)


def _deviations(target: float, log_target: float, num_leading: int) -> list[tuple[float, int]]:
    """The sizes worth trying for an axis with their squared log distances from its target, nearest first."""
    return sorted(((math.log(size) - log_target) ** 2, size) for size in _window(target, num_leading))


def _window(target: float, num_leading: int) -> range:
    """The sizes worth trying for an axis: up to twice its target and down to a quarter of it (a half, of three axes)."""
    return range(max(1, int(target / (4 if num_leading == 1 else 2))), math.ceil(2 * target) + 1)


def _ranks(exponent: float, d: int) -> list[tuple[float, Sequence[int]]]:
    if exponent <= _ZERO:
        return [(0.0, (1,))]
    nearest = max(1, round(d**exponent))
    scored = [
        (round((math.log(rank) - exponent * math.log(d)) ** 2, _TIE_DIGITS), (rank,)) for rank in (nearest, nearest + 1)
    ]
    return sorted(scored)


def _promises_full_rank(exponents: tuple[float, ...], d_in: int, d_out: int) -> bool:
    alpha, beta, gamma, delta, epsilon, phi, rho = exponents
    inner = min(d_in, d_out) ** rho
    through_a = d_out ** (phi + delta) * inner * d_in ** (gamma + beta)
    through_b = d_out ** (phi + epsilon) * inner * d_in ** (gamma + alpha)
    return bool(min(through_a, through_b) >= min(d_in, d_out) * (1 - _ZERO))


def _multiplications(axes: Axes) -> int:
    alpha, beta, gamma, delta, epsilon, phi, rho = axes
    shared = phi * rho * gamma
    return min(shared * delta * beta * (alpha + epsilon), shared * epsilon * alpha * (beta + delta))
