"""What our training steps are compared with: the same model with other linear layers, trained in the same way."""

# B batch (any leading axes), T tokens (the batch, flattened), I inputs, O outputs

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.layers import papers
from einlayers.linear import EinsumLinear, fit

Exchange = Callable[[nn.Module], nn.Module | None]
"""The layer that takes the place of this one; None: it stays."""

ONEDNN_ERROR = 1e-6
"""How far, as a share of the norm, results through oneDNN may be from those of float64: float32 in another order."""


class PapersLinear(nn.Module):
    """An ``EinsumLinear`` in the papers' formulation, its factors stored as the papers store them."""

    def __init__(self, layer: EinsumLinear) -> None:
        super().__init__()
        assert layer.bias is None
        assert not layer.weight_norm
        self.dims = layer.dims
        self.apply_factors, (first, second) = papers(layer.dims, layer.A, layer.B)
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)``."""
        x_TI = fit(x_BI, self.dims.inputs).reshape(-1, self.dims.inputs)
        y_TO = self.apply_factors(x_TI, self.first, self.second)
        return fit(y_TO.view(*x_BI.shape[:-1], self.dims.outputs), self.dims.d_out)


class OneDNNLinear(nn.Linear):
    """An ``nn.Linear`` whose products go through oneDNN, and nothing else: at precision "medium" attention is slower."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., I)`` to ``(..., O)``."""
        y_TO: Tensor = _ThroughOneDNN.apply(input.flatten(0, -2), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y_TO.view(*input.shape[:-1], self.out_features)


class _ThroughOneDNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, W_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TI, W_OI)
        torch.set_float32_matmul_precision("medium")
        try:
            return F.linear(x_TI, W_OI, bias_O)
        finally:
            torch.set_float32_matmul_precision("highest")

    @staticmethod
    def backward(ctx: Any, dy_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, W_OI = ctx.saved_tensors
        needs_x, _, needs_bias = ctx.needs_input_grad
        torch.set_float32_matmul_precision("medium")
        try:
            dx_TI = dy_TO @ W_OI if needs_x else None
            return dx_TI, dy_TO.mT @ x_TI, dy_TO.sum(0) if needs_bias else None
        finally:
            torch.set_float32_matmul_precision("highest")


def as_papers(layer: nn.Module) -> nn.Module | None:
    """Structured layers in the papers' formulation."""
    return PapersLinear(layer) if isinstance(layer, EinsumLinear) else None


def by_onednn(layer: nn.Module) -> nn.Module | None:
    """Dense layers through oneDNN."""
    return OneDNNLinear(layer) if isinstance(layer, nn.Linear) else None


def as_it_is(layer: nn.Module) -> nn.Module | None:
    """Every layer as the service trains it."""
    return None


def exchange(model: nn.Module, other: Exchange) -> dict[nn.Parameter, nn.Parameter]:
    """Put other layers into the model; return which of their parameters stands for which of the old ones."""
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (made := other(child)) is not None:
                setattr(parent, name, made)
                parameters |= zip(child.parameters(), made.parameters(), strict=True)
    return parameters


def onednn_error(shapes: Iterable[tuple[int, int]], num_tokens: int) -> float:
    """The largest error of oneDNN's outputs and gradients against float64, as a share of the norm, over layers (I, O)."""
    return max(error for d_in, d_out in shapes for error in _errors(d_in, d_out, num_tokens))


def _errors(d_in: int, d_out: int, num_tokens: int) -> list[float]:
    exact = nn.Linear(d_in, d_out, bias=False, dtype=torch.float64)
    x_TI = torch.randn(num_tokens, d_in, requires_grad=True)
    dy_TO = torch.randn(num_tokens, d_out)
    layer = OneDNNLinear(nn.Linear(d_in, d_out, bias=False))
    exact.weight.data.copy_(layer.weight.data)
    x64_TI = x_TI.detach().double().requires_grad_()
    y_TO, y64_TO = layer(x_TI), exact(x64_TI)
    found = (y_TO, *torch.autograd.grad(y_TO, (x_TI, layer.weight), dy_TO))
    expected = (y64_TO, *torch.autograd.grad(y64_TO, (x64_TI, exact.weight), dy_TO.double()))
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]
