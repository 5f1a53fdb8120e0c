"""muP for the two factors: how to initialise each, and how its learning rate follows from the dense layer's.

Each factor is a batch of matrices; its fans are those of one matrix (2406.06248, section 4 and table 2). The initial
scale is the spectral condition ``std = sqrt(min(fan_in, fan_out)) / fan_in``; Adam's learning rate goes with 1/fan_in and
is divided among the two factors, SGD's goes with (all outputs)/fan_in.
"""

import math
from dataclasses import dataclass

from einlayers.dims import Dims, check_size

View = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""A factor as a batch of matrices: its axes that number them, that are their rows (fan_out), their columns (fan_in)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorRule:
    """The muP rule of one factor; multipliers are relative to the dense layer from d_in to d_out that it replaces."""

    fan_in: int
    fan_out: int
    init_std: float
    adam_lr_mult: float
    sgd_lr_mult: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorRules:
    """The rules of both factors of one layer."""

    A: FactorRule
    B: FactorRule

    def by_name(self) -> dict[str, FactorRule]:
        """The rules by the names of the parameters."""
        return {"A": self.A, "B": self.B}


FACTOR_VIEWS: dict[str, View] = {"A": ((3,), (0, 1, 2), (4,)), "B": ((0,), (1,), (2, 3, 4))}
"""Factor A is a matrix (delta phi rho, alpha) for every gamma, factor B one (epsilon, beta gamma rho) for every phi."""


def factor_rules(dims: Dims) -> FactorRules:
    """The muP rules of factor A (fans alpha and delta*phi*rho) and factor B (fans beta*gamma*rho and epsilon)."""
    return FactorRules(
        A=factor_rule(
            dims.alpha,
            dims.delta * dims.phi * dims.rho,
            d_in=dims.d_in,
            d_out=dims.d_out,
            num_uses=dims.gamma * dims.beta,
        ),
        B=factor_rule(
            dims.beta * dims.gamma * dims.rho,
            dims.epsilon,
            d_in=dims.d_in,
            d_out=dims.d_out,
            num_uses=dims.phi * dims.delta,
        ),
    )


def factor_rule(
    fan_in: int, fan_out: int, *, d_in: int, d_out: int, num_factors: int = 2, num_uses: int = 1
) -> FactorRule:
    """The rule of one of ``num_factors`` factors of a layer, whose matrices map ``fan_in`` to ``fan_out`` features.

    ``num_uses`` is how many products with one of its matrices an input takes: its blocks, times the positions that share
    each. The gradient of an output goes with 1 over the number of all outputs, ``num_uses * fan_out``, not of one block's,
    so that is what SGD's rate grows with. The papers' rule has fan_out alone; docs/benchmarks/mup.md measures both.
    """
    return FactorRule(
        fan_in=fan_in,
        fan_out=fan_out,
        init_std=dense_init_std(fan_in, fan_out),
        adam_lr_mult=d_in / fan_in / num_factors,
        sgd_lr_mult=(num_uses * fan_out / fan_in) / (d_out / d_in) / num_factors,
    )


def dense_init_std(fan_in: int, fan_out: int) -> float:
    """The spectral initial scale of one matrix, sqrt(min(fan_in, fan_out)) / fan_in (2310.17813)."""
    return math.sqrt(min(fan_in, fan_out)) / fan_in


def branch_scale(depth: int, base_depth: int) -> float:
    """What a model of ``depth`` residual blocks multiplies its branches by: ``sqrt(base_depth / depth)``.

    The rates of Adam, and of every optimiser whose updates have a fixed size, take the same factor inside the blocks:
    ``depth`` branches of this scale, each moved by such an update, then move the output as far as ``base_depth`` did.
    SGD's rates take none: its gradients already carry the scale. Source: 2310.02244; ``base_depth`` is 3 in the
    code of 2410.02117, which prints the factor of the rates but never applies it.

    Raises:
        FieldError: a depth is not a positive whole number.
    """
    return math.sqrt(check_size("base_depth", base_depth) / check_size("depth", depth))
