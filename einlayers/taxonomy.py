"""What a structure is, by numbers: omega, psi and nu of a theta, cost and rank of a layer, the name of its family.

Formulas: 2410.02117, section 4 (taxonomy) with the rank exponent as a minimum over both cuts, which the published
formula is only for canonical theta. Counting: one MAC is one multiply-add; the papers call forward MACs "FLOPs".
"""

import math
from dataclasses import dataclass
from typing import Literal

from einlayers.dims import Dims, Policy, resolve
from einlayers.rank import generic_rank
from einlayers.theta import Theta

Family = Literal["dense", "low-rank", "kronecker", "tensor-train", "monarch", "btt", "einsum"]
Order = Literal["A_first", "B_first", "dense"]

_ROUNDS_TO_ONE = 2.0
"""Two axes that hold fewer features than this together are taken for axes of 1 (see ``Dims.is_dense``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taxonomy:
    """The coordinates of a structure: params = d**(1+nu-omega), MACs = d**(1+nu), rank = d**psi.

    ``omega`` parameter sharing (0: none), ``psi`` rank exponent (1: full), ``nu`` compute intensity (1: as dense).
    """

    omega: float
    psi: float
    nu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one layer costs: parameters without bias, forward MACs per input row, and the width between the factors."""

    params: int
    macs: int
    intermediate: int
    order: Order


def taxonomy(theta: Theta | str) -> Taxonomy:
    """omega, psi and nu of the operator family of ``theta``, in its cheaper contraction order (2410.02117, section 4)."""
    canonical = Theta.parse(theta).canonical().normalised()
    a_cut = 2 + canonical.rho - canonical.alpha - canonical.epsilon
    b_cut = 2 + canonical.rho - canonical.beta - canonical.delta
    kept = min(canonical.alpha, canonical.epsilon)
    shared = min(canonical.alpha + canonical.delta, canonical.beta + canonical.epsilon) - kept
    # Rounding clears the float noise of 1/3 and the like, so that omega = 0 can be asked for in SQL.
    return Taxonomy(
        omega=max(0.0, round(shared, 12)),
        psi=min(1.0, round(min(a_cut, b_cut), 12)),
        nu=round(1 + canonical.rho - kept, 12),
    )


def cost(dims: Dims) -> Cost:
    """Parameters and MACs of the two-factor einsum with these axes, contracted in the cheaper order."""
    a = math.prod(dims.shape_A)
    b = math.prod(dims.shape_B)
    a_first = a * dims.beta + b * dims.delta
    b_first = b * dims.alpha + a * dims.epsilon
    if a_first <= b_first:
        inner = dims.phi * dims.delta * dims.rho * dims.gamma * dims.beta
        return Cost(params=a + b, macs=a_first, intermediate=inner, order="A_first")
    inner = dims.phi * dims.epsilon * dims.rho * dims.gamma * dims.alpha
    return Cost(params=a + b, macs=b_first, intermediate=inner, order="B_first")


def is_dense(theta: Theta | str, d_in: int, d_out: int, policy: Policy = "exact") -> bool:
    """Whether the layer that is built for ``theta`` is one matrix: theta is dense, or its axes are at these widths.

    Raises:
        FieldError: as ``resolve``.
    """
    theta = Theta.parse(theta)
    return theta.is_dense or resolve(theta, d_in, d_out, policy).is_dense


def layer_cost(theta: Theta | str, d_in: int, d_out: int, policy: Policy = "exact") -> Cost:
    """The cost of the layer that is built for ``theta``: one matrix where that is dense, else ``cost`` of its dims."""
    if is_dense(theta, d_in, d_out, policy):
        return Cost(params=d_in * d_out, macs=d_in * d_out, intermediate=0, order="dense")
    return cost(resolve(theta, d_in, d_out, policy))


def padded_macs(theta: Theta | str, d_in: int, d_out: int, policy: Policy = "exact") -> int:
    """The MACs of ``layer_cost`` that multiply padded inputs, which are 0, or add to outputs that are cropped."""
    if is_dense(theta, d_in, d_out, policy):
        return 0
    dims = resolve(theta, d_in, d_out, policy)
    if cost(dims).order == "A_first":
        by_input, by_output = dims.phi * dims.delta * dims.rho, dims.rho * dims.gamma * dims.beta
    else:
        by_input, by_output = dims.phi * dims.epsilon * dims.rho, dims.rho * dims.gamma * dims.alpha
    return by_input * max(0, dims.inputs - d_in) + by_output * max(0, dims.outputs - d_out)


def ideal_macs(theta: Theta, d_in: int, d_out: int) -> float:
    """The MACs of the layer if axes could have any size: what ``layer_cost`` is about, at a hundredth of the work."""
    if theta.is_dense:
        return float(d_in * d_out)
    alpha, beta, gamma = (d_in**exponent for exponent in theta.exponents[:3])
    delta, epsilon, phi = (d_out**exponent for exponent in theta.exponents[3:6])
    if min(alpha * delta, beta * epsilon) < _ROUNDS_TO_ONE:
        return float(d_in * d_out)
    both = phi * min(d_in, d_out) ** theta.rho * gamma
    a, b = both * delta * alpha, both * epsilon * beta
    return float(min(a * beta + b * delta, b * alpha + a * epsilon))


def rank_bound(dims: Dims) -> int:
    """The generic rank of the map between the requested widths; padding and cropping lower it (see ``einlayers.rank``)."""
    return generic_rank(dims.axes, dims.d_in, dims.d_out)


def classify(theta: Theta | str) -> Family:
    """The name of the family that ``theta`` belongs to; "einsum" where it has none (2410.02117, section 3)."""
    canonical = Theta.parse(theta).canonical().normalised()
    if canonical.is_dense:
        return "dense"
    if min(canonical.alpha, canonical.epsilon) > 1 - 1e-9:
        return "low-rank"
    if max(canonical.gamma, canonical.phi) < 1e-9:
        return "kronecker" if canonical.rho < 1e-9 else "tensor-train"
    if max(canonical.beta, canonical.delta) < 1e-9:
        # Block-diagonal dense blocks on both sides: alpha = epsilon, and rho is what fills the blocks (2204.00595, 3.1).
        square = abs(canonical.alpha - canonical.epsilon) < 1e-9
        return "monarch" if square and abs(canonical.rho - (2 * canonical.alpha - 1)) < 1e-9 else "btt"
    return "einsum"
