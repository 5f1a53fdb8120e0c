"""Mixtures of experts, dense or structured, in the place of one linear layer or of one feed-forward block.

BTT-MoE (2410.02117): E structured experts of rank rho are one einsum of rank E rho whose rank axis is gated, so
``y = sum_e gate[e] W_e x``. Dense and low-rank experts are its baselines. Only the chosen experts are computed.
"""

# B batch, T tokens (the batch, flattened); I inputs, O outputs, E experts

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.dims import Dims, Policy, check_size, resolve
from einlayers.experts import DenseExpert, EinsumExpert, Experts, Making, Structure
from einlayers.families import low_rank_dims
from einlayers.linear import add_bias, check_features
from einlayers.routing import Router, mix
from einlayers.taxonomy import is_dense
from einlayers.theta import Theta


class Options(Making, total=False):
    """What every mixture takes beside its structure."""

    num_experts: int
    top_k: int
    bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureCost:
    """What a mixture costs: parameters without bias, and forward MACs per token, which only the chosen experts take."""

    params: int
    gate_params: int
    macs: int
    gate_macs: int


class LinearMoE(Experts):
    """``y = sum over the chosen experts of weight * W_e x + bias``: a mixture in the place of one linear layer.

    Input ``(..., d_in)``, output ``(..., d_out)``. ``gate`` is the ``Router``; the one bias belongs to all experts. Balance
    is trained by adding ``einlayers.routing.auxiliary_loss(model)`` to the loss. Source: 2410.02117.

    Raises:
        FieldError: a size is not a positive whole number, or ``top_k`` exceeds ``num_experts``.
    """

    gate: Router
    bias: nn.Parameter | None
    """``(d_out,)``"""

    def __init__(
        self,
        structure: Structure,
        *,
        num_experts: int = 8,
        top_k: int = 2,
        bias: bool = True,
        **making: Unpack[Making],
    ) -> None:
        super().__init__(structure, num_experts, bias_shape=(structure.d_out,) if bias else None, **making)
        like = self.stacks[0]
        self.gate = Router(self.d_in, num_experts, top_k=top_k, device=like.device, dtype=like.dtype)

    @property
    def cost(self) -> MixtureCost:
        """Parameters without bias, MACs per token."""
        return _cost([self], self.gate)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)``.

        Raises:
            FieldError: the last axis of the input does not have ``d_in`` features.
        """
        x_TI = check_features(x_BI, self.d_in).reshape(-1, self.d_in)
        y_TO = mix(x_TI, self.gate.route(x_TI), lambda rows: self.apply_each(rows, [None] * self.num_experts))
        return add_bias(y_TO, self.bias).view(*x_BI.shape[:-1], self.d_out)


class EinsumMoE(LinearMoE):
    """BTT-MoE and its like: each expert is a two-factor einsum, usually of rank 1 such as "monarch" (2410.02117).

    Equal to one einsum of rank ``num_experts * rho`` whose rank axis is gated for each token. ``theta`` is a ``Theta``, a
    name of ``NAMED`` or the papers' text.

    Raises:
        FieldError: theta or the policy is unknown, or as ``LinearMoE``.
    """

    A: nn.Parameter
    """``(num_experts, phi, delta, rho, gamma, alpha)``"""
    B: nn.Parameter
    """``(num_experts, phi, epsilon, rho, gamma, beta)``"""
    dims: Dims
    """Of one expert."""

    def __init__(
        self, d_in: int, d_out: int, theta: Theta | str, *, policy: Policy = "exact", **options: Unpack[Options]
    ) -> None:
        self._build(_resolved(theta, d_in, d_out, policy), **options)

    @classmethod
    def from_dims(cls, dims: Dims, **options: Unpack[Options]) -> "EinsumMoE":
        """The mixture whose experts have exactly these axes."""
        layer = cls.__new__(cls)
        layer._build(dims, **options)
        return layer

    def _build(self, dims: Dims, **options: Unpack[Options]) -> None:
        LinearMoE.__init__(self, EinsumExpert(dims=dims), **options)
        self.dims = dims

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, axes={self.dims.axes}"


class LowRankMoE(EinsumMoE):
    """Experts of low rank; of ``min(d_in, d_out) // num_experts`` unless told, as in 2410.02117."""

    def __init__(self, d_in: int, d_out: int, *, rank: int | None = None, **options: Unpack[Options]) -> None:
        num_experts = check_size("num_experts", options.get("num_experts", 8))
        if rank is None:
            rank = max(1, min(check_size("d_in", d_in), check_size("d_out", d_out)) // num_experts)
        self._build(low_rank_dims(d_in, d_out, rank), **options)


class DenseMoE(LinearMoE):
    """Dense experts in the place of one linear layer."""

    weight: nn.Parameter
    """``(num_experts, d_out, d_in)``"""

    def __init__(self, d_in: int, d_out: int, **options: Unpack[Options]) -> None:
        super().__init__(DenseExpert(d_in=d_in, d_out=d_out), **options)


class FeedForwardMoE(nn.Module):
    """``y = sum over the chosen experts of weight * down_e(gelu(up_e(x)))``: the usual mixture (2101.03961, section 2).

    Input and output ``(..., d_model)``. Experts are dense, or of structure ``theta``; each has its own biases. ``zero_init``
    zeroes ``down``. ``up`` and ``down`` hold their stacked parameters, and the biases ``(num_experts, features)``.

    Raises:
        FieldError: a size is not a positive whole number, ``top_k`` exceeds ``num_experts``, or theta is unknown.
    """

    gate: Router
    up: "BiasedExperts"
    down: "BiasedExperts"

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        *,
        theta: Theta | str | None = None,
        policy: Policy = "exact",
        num_experts: int = 8,
        top_k: int = 2,
        bias: bool = True,
        zero_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()

        def structure(d_in: int, d_out: int) -> Structure:
            if theta is None or is_dense(theta, d_in, d_out, policy):
                return DenseExpert(d_in=d_in, d_out=d_out)
            return EinsumExpert(dims=_resolved(theta, d_in, d_out, policy))

        up, down = structure(d_model, d_hidden), structure(d_hidden, d_model)
        self.gate = Router(d_model, num_experts, top_k=top_k, device=device, dtype=dtype)
        self.up = BiasedExperts(up, num_experts, bias=bias, device=device, dtype=dtype)
        self.down = BiasedExperts(down, num_experts, bias=bias, zero_init=zero_init, device=device, dtype=dtype)

    @property
    def cost(self) -> MixtureCost:
        """Parameters without biases, MACs per token."""
        return _cost([self.up, self.down], self.gate)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Map ``(..., d_model)`` to ``(..., d_model)``.

        Raises:
            FieldError: the last axis of the input does not have ``d_model`` features.
        """
        x_TI = check_features(x_BI, self.up.d_in).reshape(-1, self.up.d_in)
        y_TI = mix(x_TI, self.gate.route(x_TI), lambda rows: self.down([F.gelu(z_NH) for z_NH in self.up(rows)]))
        return y_TI.view(x_BI.shape)


class BiasedExperts(Experts):
    """Experts, each with its own bias, on rows that are its own already: one half of a ``FeedForwardMoE``."""

    def __init__(self, structure: Structure, num_experts: int, *, bias: bool = True, **making: Unpack[Making]) -> None:
        bias_shape = (num_experts, structure.d_out) if bias else None
        super().__init__(structure, num_experts, bias_shape=bias_shape, **making)

    def forward(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Map the rows of every expert, ``(N, d_in)`` to ``(N, d_out)`` each."""
        return self.apply_each(rows, [None] * self.num_experts if self.bias is None else self.bias.unbind())


def _resolved(theta: Theta | str, d_in: int, d_out: int, policy: Policy) -> Dims:
    return resolve(theta, d_in, d_out, policy)


def _cost(stacks: Sequence[Experts], gate: Router) -> MixtureCost:
    costs = [stack.structure.cost for stack in stacks]
    return MixtureCost(
        params=gate.out_features * sum(cost.params for cost in costs),
        gate_params=gate.weight.numel(),
        macs=gate.top_k * sum(cost.macs for cost in costs),
        gate_macs=gate.weight.numel(),
    )
