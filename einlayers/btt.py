"""Block Tensor-Train of any order: K cores in a chain; ``EinsumLinear`` is the case of two (2406.06248, section 3)."""

# B batch, I inputs (d_in), O outputs (d_out); for core i: p blocks of outputs done (n_1..n_{i-1}), s blocks of inputs ahead
# (m_K..m_{i+1}), q incoming rank, m and n the axes that the core exchanges, r outgoing rank, l = (p, s) all blocks

import math
from collections.abc import Sequence
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from einlayers.families import BTTAxes, btt_axes
from einlayers.linear import EinsumLinear, add_bias, check_features, fit
from einlayers.scaling import FactorRule, View, factor_rule
from einlayers.taxonomy import Cost


class CoreOptions(TypedDict, total=False):
    """What a Block Tensor-Train of any order takes beside its structure."""

    bias: bool
    zero_init: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


def btt_layer(
    d_in: int, d_out: int, *, num_cores: int = 2, rank: int = 1, **options: Unpack[CoreOptions]
) -> "EinsumLinear | BTTLinear":
    """Block Tensor-Train of ``num_cores`` cores of the given rank.

    Two cores are a two-factor einsum, so they land in the same layer where they are the same thing: an ``EinsumLinear``
    with axes (m_1, 1, m_2, 1, n_2, n_1, rank). More cores are a ``BTTLinear``.

    Raises:
        FieldError: a width or the rank is not a positive whole number, or the number of cores is not from 2 to 8.
    """
    if num_cores == 2:
        return EinsumLinear.btt(d_in, d_out, rank=rank, **options)
    return BTTLinear(d_in, d_out, num_cores=num_cores, rank=rank, **options)


class BTTLinear(nn.Module):
    """``y = W x + bias`` where W is a chain of ``num_cores`` block-diagonal factors (2406.06248, section 3).

    ``W[(n_1..n_K), (m_K..m_1)] = sum over ranks of prod_i core_i[(n_1..n_{i-1}), (m_K..m_{i+1}), r_{i-1}, m_i, n_i, r_i]``:
    core i exchanges the input axis m_i for the output axis n_i, with a block of its own for all other axes. Parameters and
    MACs grow as ``d**(1 + 1/K)``. Input ``(..., d_in)``, output ``(..., d_out)``; padded and cropped as ``axes`` reports.
    The parameter ``core_i`` has axes ``(p, s, q, m, n, r)``: (n_1..n_{i-1}), (m_K..m_{i+1}), r_{i-1}, m_i, n_i, r_i.
    ``zero_init`` starts as the zero map, which learns.

    Raises:
        FieldError: a width or the rank is not a positive whole number, or the number of cores is not from 2 to 8.
    """

    d_in: int
    d_out: int
    axes: BTTAxes

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        num_cores: int = 3,
        rank: int = 1,
        bias: bool = True,
        zero_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.axes = btt_axes(d_in, d_out, num_cores, rank)
        self.zero_init = zero_init
        for i, core in enumerate(self.axes.cores, start=1):
            self.register_parameter(f"core_{i}", nn.Parameter(torch.empty(core.shape, device=device, dtype=dtype)))
        self.bias = nn.Parameter(torch.empty(d_out, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @property
    def cores(self) -> list[nn.Parameter]:
        """The cores in the order of their application."""
        return [getattr(self, f"core_{i}") for i in range(1, len(self.axes.m) + 1)]

    @property
    def cost(self) -> Cost:
        """Parameters without bias and MACs per input row."""
        return self.axes.cost

    @property
    def rank_bound(self) -> int:
        """The rank that the map cannot exceed."""
        return self.axes.rank_bound

    def lr_rules(self) -> dict[str, FactorRule]:
        """The muP rule of each core, by the name of its parameter."""
        cores = self.axes.cores
        return {
            f"core_{i}": factor_rule(
                core.fan_in,
                core.fan_out,
                d_in=self.d_in,
                d_out=self.d_out,
                num_factors=len(cores),
                num_uses=core.done * core.ahead,
            )
            for i, core in enumerate(cores, start=1)
        }

    def matrix_views(self) -> dict[str, View]:
        """Which axes of each core number its matrices, which are their rows (fan_out) and which their columns (fan_in)."""
        return {f"core_{i}": ((0, 1), (4, 5), (2, 3)) for i in range(1, len(self.axes.m) + 1)}

    def reset_parameters(self) -> None:
        """Draw the cores at muP's scale; ``zero_init`` zeroes the last one, which zeroes the map but lets it learn."""
        for core, rule in zip(self.cores, self.lr_rules().values(), strict=True):
            nn.init.normal_(core, std=rule.init_std)
        if self.zero_init:
            nn.init.zeros_(self.cores[-1])
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)``.

        Raises:
            FieldError: the last axis of the input does not have ``d_in`` features.
        """
        y_BO = self._linear(x_BI)
        return add_bias(y_BO, self.bias)

    def to_dense(self) -> Tensor:
        """The matrix ``W`` of shape ``(d_out, d_in)``, multiplied out; gradients flow to the cores."""
        first = self.cores[0]
        return self._linear(torch.eye(self.d_in, device=first.device, dtype=first.dtype)).mT

    def extra_repr(self) -> str:
        chain = " ".join(f"{m}->{n}" for m, n in zip(self.axes.m, self.axes.n, strict=True))
        zero_init = ", zero_init=True" if self.zero_init else ""
        return (
            f"{self.d_in}, {self.d_out}, cores {chain}, rank={self.axes.rank}, bias={self.bias is not None}{zero_init}"
        )

    def _linear(self, x_BI: Tensor) -> Tensor:
        return fit(apply_cores(fit(check_features(x_BI, self.d_in), self.axes.inputs), self.cores), self.axes.d_out)


def apply_cores(x_BI: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Map ``(..., m_K .. m_1)`` to ``(..., n_1 .. n_K)``, one batched product for each core and one copy after it."""
    num_rows = math.prod(x_BI.shape[:-1])
    p, s, q, m, n, r = cores[0].shape
    # Between the cores the batch is the last axis, so that the copies move long runs.
    z_liB = x_BI.reshape(num_rows, s, m).permute(1, 2, 0)
    for core, after in zip(cores, [*cores[1:], None], strict=True):
        p, s, q, m, n, r = core.shape
        y_loB = torch.bmm(core.reshape(p * s, q * m, n * r).mT, z_liB)
        if after is not None:
            # The slowest input axis ahead joins the rank as what the next core reads; n joins the blocks done.
            ahead, m_next = after.shape[1], after.shape[3]
            z_psmnrB = y_loB.view(p, ahead, m_next, n, r, num_rows)
            z_liB = z_psmnrB.permute(0, 3, 1, 4, 2, 5).reshape(p * n * ahead, r * m_next, num_rows)
    y_BO = y_loB.view(p * n, num_rows).mT.contiguous()
    return y_BO.view(*x_BI.shape[:-1], p * n)
