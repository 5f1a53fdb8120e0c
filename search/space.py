"""Regions of the space of structures, and the unit cube that samplers see of each.

A theta has five degrees of freedom: gamma, how the rest of the input is split between alpha and beta, phi, how the rest
of the output is split between delta and epsilon, and the rank. A point of the cube says each of them once: a theta and its
swap, which are the same operators, are one point, because beta never exceeds alpha before the canonical form is taken. A
subspace leaves some of the five free and keeps the others on a face.

The named designs lie on faces, which a uniform draw from the inside never meets. So a fifth of a coordinate belongs to each
face (``FACE``): within it nothing changes, and a sampler that likes a face finds it without hitting a point exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from einlayers.theta import Theta

Unit = tuple[float, ...]
"""A point of the unit cube."""

FACE = 0.2
"""The part of a coordinate that belongs to a face: its probability under a uniform draw."""


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
        """A point of a theta, the middle of every face that it lies on; None where it lies outside of this region."""
        ...


@dataclass(frozen=True, slots=True)
class _Coordinate:
    """A share in [0, 1] as a coordinate, a part of which belongs to the share 0, and a part to the share 1."""

    zero: float = 0.0
    one: float = 0.0

    def to_share(self, u: float) -> float:
        return min(1.0, max(0.0, (u - self.zero) / (1 - self.zero - self.one)))

    def to_unit(self, share: float) -> float:
        if share < _ZERO:
            return self.zero / 2
        if share > 1 - _ZERO:
            return 1 - self.one / 2
        return self.zero + share * (1 - self.zero - self.one)


_COORDINATES: Mapping[str, _Coordinate] = {
    "gamma": _Coordinate(zero=FACE),
    "beta": _Coordinate(zero=FACE),
    "phi": _Coordinate(zero=FACE),
    "delta": _Coordinate(zero=FACE, one=FACE),
    "rank": _Coordinate(zero=FACE),
}
"""In the order of the cube. ``beta``: of alpha and beta, as a share of one half; ``delta``: of delta and epsilon; ``rank``:
of the range of rho without degeneration, up to min(alpha, epsilon), beyond which a structure costs as much as dense."""


@dataclass(frozen=True, slots=True)
class Region:
    """The thetas in which only these coordinates are free, and the others 0.

    ``full_rank``: those with psi = 1 alone; for regions in which beta and delta are 0.
    """

    free: tuple[str, ...]
    full_rank: bool = False

    @property
    def num_coordinates(self) -> int:
        """As many as are free."""
        return len(self.free)

    def to_theta(self, unit: Unit) -> Theta:
        """The canonical theta at a point of the cube."""
        shares = {name: _COORDINATES[name].to_share(u) for name, u in zip(self.free, unit, strict=True)}
        gamma, phi = shares.get("gamma", 0.0), shares.get("phi", 0.0)
        beta, delta = (1 - gamma) * shares.get("beta", 0.0) / 2, (1 - phi) * shares.get("delta", 0.0)
        theta = Theta(
            alpha=1 - gamma - beta,
            beta=beta,
            gamma=gamma,
            delta=delta,
            epsilon=max(0.0, 1 - phi - delta),
            phi=phi,
            rho=0,
        ).canonical()
        low, high = self._ranks(theta)
        return Theta.of((*theta.exponents[:-1], low + (high - low) * shares.get("rank", 0.0)))

    def to_unit(self, theta: Theta) -> Unit | None:
        """A point of any theta in this region, in its canonical form or not."""
        return _place(self, theta.exponents)

    def _place(self, theta: Theta) -> Unit | None:
        """The point of a theta in its canonical form."""
        low, high = self._ranks(theta)
        if not low - _ZERO <= theta.rho <= high + _ZERO:
            return None
        rank = _share(theta.rho - low, high - theta.rho)
        if theta.beta > theta.alpha:
            theta = theta.swapped()
        shares = {
            "gamma": theta.gamma,
            "beta": 2 * _share(theta.beta, theta.alpha),
            "phi": theta.phi,
            "delta": _share(theta.delta, theta.epsilon),
            "rank": rank,
        }
        if any(share > _ZERO for name, share in shares.items() if name not in self.free):
            return None
        return tuple(_COORDINATES[name].to_unit(shares[name]) for name in self.free)

    def _ranks(self, theta: Theta) -> tuple[float, float]:
        """The least and the greatest rho: the rank of a BTT is full from gamma + phi + rho = 1 (2410.02117, section 4)."""
        high = min(theta.alpha, theta.epsilon)
        return max(0.0, theta.alpha - theta.phi) if self.full_rank else 0.0, high


@dataclass(frozen=True, slots=True)
class Monarch:
    """Monarch by the number of its blocks, d ** gamma from 1 to the root of d, the one coordinate (2204.00595, 3.1)."""

    num_coordinates: int = 1

    def to_theta(self, unit: Unit) -> Theta:
        """The theta with this gamma, and the rank that fills its blocks."""
        gamma = unit[0] / 2
        return Theta(
            alpha=1 - gamma, beta=0, gamma=gamma, delta=0, epsilon=1 - gamma, phi=gamma, rho=1 - 2 * gamma
        ).canonical()

    def to_unit(self, theta: Theta) -> Unit | None:
        """The point of a theta with dense blocks, as many in either factor."""
        theta = _canonical_form(theta.exponents)
        off = max(theta.beta, theta.delta, abs(theta.gamma - theta.phi), abs(theta.rho - (1 - 2 * theta.gamma)))
        return None if off > _ZERO else (min(1.0, 2 * theta.gamma),)


SUBSPACES: Mapping[str, Subspace] = {
    "full": Region(("gamma", "beta", "phi", "delta", "rank")),
    "btt": Region(("gamma", "phi", "rank")),
    "full-rank-btt": Region(("gamma", "phi", "rank"), full_rank=True),
    "low-rank": Region(("rank",)),
    "kronecker": Region(("beta", "delta")),
    "tensor-train": Region(("beta", "delta", "rank")),
    "monarch": Monarch(),
}
"""The regions that a search can name."""

_ZERO = 1e-9


@lru_cache(maxsize=65536)
def _place(region: Region, exponents: tuple[float, ...]) -> Unit | None:
    # Every ask places the whole history anew; it would be the same work every time. By exponents, as all forms of dense
    # are equal thetas but lie in different subspaces.
    return region._place(_canonical_form(exponents))


def _canonical_form(exponents: tuple[float, ...]) -> Theta:
    return Theta.of(exponents).canonical().normalised()


def _share(part: float, other: float) -> float:
    """``part`` of what both are, in [0, 1]; 0 where there is nothing to share."""
    whole = part + other
    return min(1.0, max(0.0, part / whole)) if whole > _ZERO else 0.0
