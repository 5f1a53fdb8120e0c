"""muP for the two factors: how to initialise each, and how its learning rate follows from the dense layer's.

Each factor is a batch of matrices; its fans are those of one matrix (2406.06248, section 4 and table 2). The initial
scale is the spectral condition ``std = sqrt(min(fan_in, fan_out)) / fan_in``; Adam's learning rate goes with 1/fan_in and
is divided among the two factors, SGD's goes with fan_out/fan_in.
"""

import math
from dataclasses import dataclass

from einlayers.dims import Dims


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


def factor_rules(dims: Dims) -> FactorRules:
    """The muP rules of factor A (fans alpha and delta*phi*rho) and factor B (fans beta*gamma*rho and epsilon)."""
    return FactorRules(
        A=_rule(dims, fan_in=dims.alpha, fan_out=dims.delta * dims.phi * dims.rho),
        B=_rule(dims, fan_in=dims.beta * dims.gamma * dims.rho, fan_out=dims.epsilon),
    )


def dense_init_std(fan_in: int, fan_out: int) -> float:
    """The spectral initial scale of one matrix, sqrt(min(fan_in, fan_out)) / fan_in (2310.17813)."""
    return math.sqrt(min(fan_in, fan_out)) / fan_in


def _rule(dims: Dims, *, fan_in: int, fan_out: int) -> FactorRule:
    return FactorRule(
        fan_in=fan_in,
        fan_out=fan_out,
        init_std=dense_init_std(fan_in, fan_out),
        adam_lr_mult=dims.d_in / fan_in / 2,
        sgd_lr_mult=(fan_out / fan_in) / (dims.d_out / dims.d_in) / 2,
    )
