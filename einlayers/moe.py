"""Mixtures of experts, dense or structured, in the place of one linear layer or of one feed-forward block.

BTT-MoE (2410.02117): E structured experts of rank rho are one einsum of rank E rho whose rank axis is gated, so
``y = sum_e gate[e] W_e x``. Dense and low-rank experts are its baselines. Only the chosen experts are computed.
"""

# B batch, T tokens (the batch, flattened), N tokens of one expert; I inputs, O outputs, E experts

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.contraction import contract
from einlayers.dims import Dims, Policy, check_size, resolve
from einlayers.families import low_rank_dims
from einlayers.linear import add_bias, check_features, fit
from einlayers.routing import Router, mix
from einlayers.scaling import FACTOR_VIEWS, FactorRule, View, factor_rule, factor_rules
from einlayers.taxonomy import Cost, Order, cost
from einlayers.theta import Theta


class Making(TypedDict, total=False):
    """How parameters are made; ``zero_init`` starts as the zero map, which learns."""

    zero_init: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


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


class Structure(Protocol):
    """How one expert is parametrised and applied; the layers hold the parameters of all experts stacked."""

    @property
    def d_in(self) -> int: ...
    @property
    def d_out(self) -> int: ...
    @property
    def cost(self) -> Cost: ...

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The parameters in the order of application."""
        ...

    def rules(self) -> dict[str, FactorRule]:
        """The muP rule of each parameter."""
        ...

    def views(self) -> dict[str, View]:
        """The matrices of each parameter."""
        ...

    def apply(self, x_NI: Tensor, parameters: Sequence[Tensor], bias_O: Tensor | None) -> Tensor:
        """Map ``(N, d_in)`` to ``(N, d_out)``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseExpert:
    """One matrix."""

    d_in: int
    d_out: int

    def __post_init__(self) -> None:
        check_size("d_in", self.d_in)
        check_size("d_out", self.d_out)

    @property
    def cost(self) -> Cost:
        size = self.d_in * self.d_out
        return Cost(params=size, macs=size, intermediate=0, order="dense")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"weight": (self.d_out, self.d_in)}

    def rules(self) -> dict[str, FactorRule]:
        return {"weight": factor_rule(self.d_in, self.d_out, d_in=self.d_in, d_out=self.d_out, num_factors=1)}

    def views(self) -> dict[str, View]:
        return {"weight": ((), (0,), (1,))}

    def apply(self, x_NI: Tensor, parameters: Sequence[Tensor], bias_O: Tensor | None) -> Tensor:
        return F.linear(x_NI, parameters[0], bias_O)


@dataclass(frozen=True, slots=True, kw_only=True)
class EinsumExpert:
    """Two factors, padded and cropped as in ``EinsumLinear``."""

    dims: Dims
    order: Order = field(init=False)
    """Derived once, as every expert of every forward pass asks for it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", cost(self.dims).order)

    @property
    def d_in(self) -> int:
        return self.dims.d_in

    @property
    def d_out(self) -> int:
        return self.dims.d_out

    @property
    def cost(self) -> Cost:
        return cost(self.dims)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"A": self.dims.shape_A, "B": self.dims.shape_B}

    def rules(self) -> dict[str, FactorRule]:
        return factor_rules(self.dims).by_name()

    def views(self) -> dict[str, View]:
        return dict(FACTOR_VIEWS)

    def apply(self, x_NI: Tensor, parameters: Sequence[Tensor], bias_O: Tensor | None) -> Tensor:
        A, B = parameters
        y_NO = fit(contract(fit(x_NI, self.dims.inputs), A, B, order=self.order), self.d_out)
        return add_bias(y_NO, bias_O)


class Experts(nn.Module):
    """``num_experts`` linear maps of one structure, whose parameters have a leading axis of experts; and a bias."""

    bias: nn.Parameter | None

    def __init__(
        self,
        structure: Structure,
        num_experts: int,
        *,
        bias_shape: tuple[int, ...] | None,
        zero_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.structure = structure
        self.num_experts = check_size("num_experts", num_experts)
        self.zero_init = zero_init
        for name, shape in structure.shapes().items():
            self.register_parameter(name, nn.Parameter(torch.empty((num_experts, *shape), device=device, dtype=dtype)))
        self.bias = None if bias_shape is None else nn.Parameter(torch.empty(bias_shape, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def d_in(self) -> int:
        """Input features."""
        return self.structure.d_in

    @property
    def d_out(self) -> int:
        """Output features."""
        return self.structure.d_out

    @property
    def stacks(self) -> list[nn.Parameter]:
        """The parameters of all experts, in the order of application."""
        return [self.get_parameter(name) for name in self.structure.shapes()]

    def lr_rules(self) -> dict[str, FactorRule]:
        """The muP rule of each stack: that of one expert, as every token sees its experts one at a time."""
        return self.structure.rules()

    def matrix_views(self) -> dict[str, View]:
        """Which axes of each stack number its matrices, which are their rows (fan_out) and which their columns (fan_in)."""
        return {name: _stacked(view) for name, view in self.structure.views().items()}

    def reset_parameters(self) -> None:
        """Draw every expert at muP's scale and zero the bias; ``zero_init`` zeroes the last stack, and so the maps."""
        for stack, rule in zip(self.stacks, self.lr_rules().values(), strict=True):
            nn.init.normal_(stack, std=rule.init_std)
        if self.zero_init:
            nn.init.zeros_(self.stacks[-1])
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def apply_each(self, rows: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
        """Apply every expert to the rows of its own: ``(N, d_in)`` to ``(N, d_out)`` each, where N may be 0."""
        # Of an expert without rows, unbind makes gradients of zeros; where none has rows, all must be in the graph for that.
        is_empty = not any(map(len, rows))
        experts = zip(rows, zip(*(stack.unbind() for stack in self.stacks), strict=True), biases, strict=True)
        return [
            self.structure.apply(x_NI, parameters, bias_O) if is_empty or len(x_NI) else x_NI.new_empty(0, self.d_out)
            for x_NI, parameters, bias_O in experts
        ]

    def extra_repr(self) -> str:
        zero_init = ", zero_init=True" if self.zero_init else ""
        return f"{self.d_in}, {self.d_out}, num_experts={self.num_experts}, bias={self.bias is not None}{zero_init}"


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
            if theta is None:
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


def _stacked(view: View) -> View:
    """The view of a stack, whose first axis numbers the experts."""
    batch, rows, columns = (tuple(axis + 1 for axis in axes) for axes in view)
    return (0, *batch), rows, columns


def _cost(stacks: Sequence[Experts], gate: Router) -> MixtureCost:
    costs = [stack.structure.cost for stack in stacks]
    return MixtureCost(
        params=gate.out_features * sum(cost.params for cost in costs),
        gate_params=gate.weight.numel(),
        macs=gate.top_k * sum(cost.macs for cost in costs),
        gate_macs=gate.weight.numel(),
    )
