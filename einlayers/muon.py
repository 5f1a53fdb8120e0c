"""Muon for layers of several matrices: every update is a batch of (nearly) orthogonal matrices, at the size of muP.

The update of a matrix is its momentum with all singular values set to about 1, times ``sqrt(fan_out / fan_in)``: the
spectral condition (2310.17813, section 3), so that one rate serves every width (2512.05620). A factor is a batch of
matrices, as it is for its initial scale (2406.06248, section 4), and each matrix of the batch is orthogonalised on its own.
"""

# N batch of matrices, P outputs (fan_out), Q inputs (fan_in) of one matrix

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from einlayers.errors import FieldError
from einlayers.scaling import View

_QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
)
"""The best polynomials ``a x + b x^3 + c x^5``, one after another, for singular values from 1e-3 to 1 (2505.16932,
algorithm 1): together they map them to 0.87..1.13; five times the usual one (3.4445, -4.7750, 2.0315) gives 0.47..1.20."""

Group = dict[str, Any]
"""A parameter group in torch's own format."""


def matrices(tensor: Tensor, view: View) -> Tensor:
    """The tensor as its batch of matrices ``(N, P, Q)``."""
    batch, rows, columns = (math.prod(tensor.shape[axis] for axis in axes) for axes in view)
    return tensor.permute(*_order(view)).reshape(batch, rows, columns)


def from_matrices(batch_NPQ: Tensor, view: View, shape: torch.Size) -> Tensor:
    """The tensor of ``shape`` whose ``matrices`` these are."""
    order = _order(view)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    permuted: Tensor = batch_NPQ.reshape([shape[axis] for axis in order]).permute(inverse)
    return permuted


def orthogonalise(batch_NPQ: Tensor) -> Tensor:
    """For each matrix ``U S V^T`` about ``U V^T``, by five Newton-Schulz steps with odd quintic polynomials.

    Singular values from 1e-3 of the Frobenius norm become 0.87..1.13, smaller ones something in between.
    """
    # In half precision the larger coefficients would throw singular values out of the range that the next step is for.
    X = batch_NPQ.to(torch.promote_types(batch_NPQ.dtype, torch.float32))
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(X.dtype).tiny)
    is_tall = X.shape[-2] > X.shape[-1]
    X = X.mT if is_tall else X
    for first, third, fifth in _QUINTICS:
        gram = X @ X.mT
        X = first * X + (third * gram + fifth * gram @ gram) @ X
    orthogonal: Tensor = (X.mT if is_tall else X).to(batch_NPQ.dtype)
    return orthogonal


class Muon(Optimizer):
    """Muon for the groups with a ``view``, AdamW for the others; ``param_groups(model, lr, optimizer="muon")`` makes both.

    A matrix of fans P, Q moves by ``lr sqrt(P / Q) orthogonalise(momentum)``; weight decay is decoupled: ``lr * decay``.
    ``betas`` and ``eps`` are those of AdamW.

    Raises:
        FieldError: lr, momentum or weight decay is outside its range, or a group has no ``view``.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value, largest in (
            ("lr", lr, math.inf),
            ("momentum", momentum, 1),
            ("weight_decay", weight_decay, math.inf),
        ):
            if not 0 <= value < largest:
                raise FieldError(name, expected=f"a number from 0 to below {largest}", got=value)
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, defaults | {"betas": betas, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, which must say what its matrices are, or by None that it has none."""
        if "view" not in param_group:
            expected = 'groups with a view, as param_groups(model, lr, optimizer="muon") makes them'
            raise FieldError("params", expected=expected, got="parameters without one")
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            move = _adam_update if group["view"] is None else _muon_update
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = move(parameter.grad, self.state[parameter], group)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
        return loss


def _muon_update(gradient: Tensor, state: dict[str, Any], group: Group) -> Tensor:
    if not state:
        state["momentum"] = torch.zeros_like(gradient)
    momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
    direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
    batch_NPQ = matrices(direction, group["view"])
    scale = math.sqrt(batch_NPQ.shape[-2] / batch_NPQ.shape[-1])
    update_NPQ = scale * orthogonalise(batch_NPQ)
    return from_matrices(update_NPQ, group["view"], gradient.shape)


def _adam_update(gradient: Tensor, state: dict[str, Any], group: Group) -> Tensor:
    if not state:
        state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
    beta1, beta2 = group["betas"]
    state["step"] += 1
    mean = state["mean"].lerp_(gradient, 1 - beta1) / (1 - beta1 ** state["step"])
    square = state["square"].lerp_(gradient.square(), 1 - beta2) / (1 - beta2 ** state["step"])
    update: Tensor = mean / (square.sqrt() + group["eps"])
    return update


def _order(view: View) -> tuple[int, ...]:
    return (*view[0], *view[1], *view[2])
