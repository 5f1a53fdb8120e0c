"""Regions of the space of structures, and the unit cube that samplers see of each.

A subspace has as many coordinates as degrees of freedom, so no direction of the cube is redundant. Three exponents that
sum to 1 are two coordinates by stick breaking, uniform on the simplex. The rank exponent is stretched over its
non-degenerate range, 0 to min(alpha, epsilon): beyond it a structure costs as much as dense.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from einlayers.theta import Theta

Unit = tuple[float, ...]
"""A point of the unit cube."""


class Subspace(Protocol):
    """A region of theta with its coordinates."""

    @property
    def num_coordinates(self) -> int:
        """The dimension of the cube."""
        ...

    def to_theta(self, unit: Unit) -> Theta:
        """The canonical theta at a point of the cube."""
        ...

    def to_unit(self, theta: Theta) -> Unit | None:
        """The point of a theta, or None where the theta lies outside of this region."""
        ...


@dataclass(frozen=True, slots=True)
class Full:
    """Every theta: two simplices and the rank exponent."""

    num_coordinates: int = 5

    def to_theta(self, unit: Unit) -> Theta:
        """The canonical theta at a point of the 5-cube."""
        inputs, outputs = _from_stick(unit[0], unit[1]), _from_stick(unit[2], unit[3])
        theta = _theta(alpha=inputs[0], beta=inputs[1], delta=outputs[0], epsilon=outputs[1]).canonical()
        return _with_rank(theta, unit[4])

    def to_unit(self, theta: Theta) -> Unit | None:
        """The point of any non-degenerate theta, in its canonical form."""
        canonical = _canonical(theta)
        rank = _rank_coordinate(canonical)
        if rank is None:
            return None
        return (*_to_stick(canonical.alpha, canonical.beta), *_to_stick(canonical.delta, canonical.epsilon), rank)


@dataclass(frozen=True, slots=True)
class Btt:
    """Block Tensor-Train: beta = delta = 0, any block sizes, any rank (2406.06248, section 3)."""

    num_coordinates: int = 3

    def to_theta(self, unit: Unit) -> Theta:
        """The theta with alpha, epsilon and the rank share as coordinates."""
        return _with_rank(_theta(alpha=unit[0], epsilon=unit[1]), unit[2])

    def to_unit(self, theta: Theta) -> Unit | None:
        """The point of a theta with beta = delta = 0."""
        canonical = _canonical(theta)
        rank = _rank_coordinate(canonical)
        if rank is None or max(canonical.beta, canonical.delta) > _ZERO:
            return None
        return (canonical.alpha, canonical.epsilon, rank)


@dataclass(frozen=True, slots=True)
class LowRank:
    """Low rank: alpha = epsilon = 1, the rank exponent alone."""

    num_coordinates: int = 1

    def to_theta(self, unit: Unit) -> Theta:
        """The low-rank theta of rank exponent ``unit[0]``."""
        return _with_rank(_theta(alpha=1.0, epsilon=1.0), unit[0])

    def to_unit(self, theta: Theta) -> Unit | None:
        """The point of a theta with alpha = epsilon = 1."""
        canonical = _canonical(theta)
        return (canonical.rho,) if min(canonical.alpha, canonical.epsilon) > 1 - _ZERO else None


@dataclass(frozen=True, slots=True)
class TensorTrain:
    """Two-core Tensor-Train, gamma = phi = 0; rank exponent 0 is Kronecker."""

    num_coordinates: int = 3

    def to_theta(self, unit: Unit) -> Theta:
        """The theta with the shares alpha and epsilon and the rank share as coordinates."""
        theta = _theta(alpha=unit[0], beta=1 - unit[0], delta=1 - unit[1], epsilon=unit[1]).canonical()
        return _with_rank(theta, unit[2])

    def to_unit(self, theta: Theta) -> Unit | None:
        """The point of a theta with gamma = phi = 0."""
        canonical = _canonical(theta)
        rank = _rank_coordinate(canonical)
        if rank is None or max(canonical.gamma, canonical.phi) > _ZERO:
            return None
        return (canonical.alpha, canonical.epsilon, rank)


SUBSPACES: Mapping[str, Subspace] = {
    "full": Full(),
    "btt": Btt(),
    "low-rank": LowRank(),
    "tensor-train": TensorTrain(),
}
"""The regions that a search can name."""

_ZERO = 1e-9


def _canonical(theta: Theta) -> Theta:
    return _canonical_form(theta.exponents)


@lru_cache(maxsize=65536)
def _canonical_form(exponents: tuple[float, ...]) -> Theta:
    # Every ask places the whole history anew; it would be the same work every time. By exponents, as all forms of dense
    # are equal thetas but lie in different subspaces.
    return Theta.of(exponents).canonical().normalised()


def _theta(
    *, alpha: float = 0.0, beta: float = 0.0, delta: float = 0.0, epsilon: float = 0.0, rho: float = 0.0
) -> Theta:
    """A theta whose gamma and phi are what the other exponents leave."""
    gamma, phi = max(0.0, 1 - alpha - beta), max(0.0, 1 - delta - epsilon)
    return Theta(alpha=alpha, beta=beta, gamma=gamma, delta=delta, epsilon=epsilon, phi=phi, rho=rho)


def _with_rank(theta: Theta, share: float) -> Theta:
    rho = share * min(theta.alpha, theta.epsilon)
    return Theta.of((*theta.exponents[:-1], rho))


def _rank_coordinate(theta: Theta) -> float | None:
    limit = min(theta.alpha, theta.epsilon)
    if theta.rho > limit + _ZERO:
        return None
    return min(1.0, theta.rho / limit) if limit > _ZERO else 0.0


def _from_stick(u: float, v: float) -> tuple[float, float]:
    """Two of three shares, uniform on the simplex for uniform (u, v)."""
    first = 1 - math.sqrt(u)
    return first, (1 - first) * v


def _to_stick(first: float, second: float) -> tuple[float, float]:
    rest = 1 - first
    return rest * rest, min(1.0, second / rest) if rest > _ZERO else 0.0
