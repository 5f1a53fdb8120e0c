"""Stacks of experts of one structure: how one expert is parametrised and applied, and the module that holds them all."""

# N tokens of one expert, I inputs, O outputs

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.contraction import contract
from einlayers.dims import Dims, check_size
from einlayers.linear import add_bias, fit
from einlayers.scaling import FACTOR_VIEWS, FactorRule, View, factor_rule, factor_rules
from einlayers.taxonomy import Cost, Order, cost


class Making(TypedDict, total=False):
    """How parameters are made; ``zero_init`` starts as the zero map, which learns."""

    zero_init: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


class Structure(Protocol):
    """How one expert is parametrised and applied; the layers hold the parameters of all experts stacked."""

    @property
    def d_in(self) -> int:
        """Input features."""
        ...

    @property
    def d_out(self) -> int:
        """Output features."""
        ...

    @property
    def cost(self) -> Cost:
        """Parameters without bias and MACs per token of one expert."""
        ...

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
        """One product."""
        size = self.d_in * self.d_out
        return Cost(params=size, macs=size, intermediate=0, order="dense")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """``weight (d_out, d_in)``"""
        return {"weight": (self.d_out, self.d_in)}

    def rules(self) -> dict[str, FactorRule]:
        """The dense layer's own."""
        return {"weight": factor_rule(self.d_in, self.d_out, d_in=self.d_in, d_out=self.d_out, num_factors=1)}

    def views(self) -> dict[str, View]:
        """One matrix."""
        return {"weight": ((), (0,), (1,))}

    def apply(self, x_NI: Tensor, parameters: Sequence[Tensor], bias_O: Tensor | None) -> Tensor:
        """Map ``(N, d_in)`` to ``(N, d_out)``."""
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
        """Input features."""
        return self.dims.d_in

    @property
    def d_out(self) -> int:
        """Output features."""
        return self.dims.d_out

    @property
    def cost(self) -> Cost:
        """Of the two factors, in the cheaper order."""
        return cost(self.dims)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """``A (phi, delta, rho, gamma, alpha)`` and ``B (phi, epsilon, rho, gamma, beta)``"""
        return {"A": self.dims.shape_A, "B": self.dims.shape_B}

    def rules(self) -> dict[str, FactorRule]:
        """The muP rule of each factor."""
        return factor_rules(self.dims).by_name()

    def views(self) -> dict[str, View]:
        """The matrices of each factor."""
        return dict(FACTOR_VIEWS)

    def apply(self, x_NI: Tensor, parameters: Sequence[Tensor], bias_O: Tensor | None) -> Tensor:
        """Map ``(N, d_in)`` to ``(N, d_out)``."""
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


def _stacked(view: View) -> View:
    """The view of a stack, whose first axis numbers the experts."""
    batch, rows, columns = (tuple(axis + 1 for axis in axes) for axes in view)
    return (0, *batch), rows, columns
