"""Two factors as operators of torch, which tracers see as they are: the map, and the gradients of both factors.

``einlayers::two_factor(x, P, Q)`` is y; of ``(dy, Q, P)`` it is dx. ``einlayers::two_factor_gradients(x, P, Q, dy)`` is dP
and dQ. Both are linear in everything, so the derivatives of either are made of the two, and those of every order exist.
Saved are the arguments alone. Where the kernels do not run, on another device, without Triton or at sizes that fit on no
chip, the operators give the same by torch's own products: a program that was exported with them runs anywhere.

Mixtures call them for every expert, on its own tokens. A gate on the axis rho inside the kernels would compute all experts
for every token.
"""

# T tokens, I inputs, O outputs; g i f r o as in ``einlayers.fused.sizes``

from typing import Any

import torch
from torch import Tensor

from einlayers.fused.policy import SERVED, fits, runs_on
from einlayers.fused.sizes import Sizes


@torch.library.custom_op("einlayers::two_factor", mutates_args=())
def two_factor(x_TI: Tensor, P: Tensor, Q: Tensor) -> Tensor:
    """``y[t f o] = sum over g r of (sum over i of x[t g i] P[g f r i]) Q[f g r o]``, contiguous.

    Raises:
        ValueError: the shapes do not fit together.
    """
    _check(x_TI, P, Q)
    if not _is_launched(x_TI, P, Q):
        return torch.einsum("tfgr,fgro->tfo", _intermediate(x_TI, P), Q).flatten(1).contiguous()
    from einlayers.fused import launch

    return launch.two_factor(x_TI, P, Q)


@torch.library.custom_op("einlayers::two_factor_gradients", mutates_args=())
def two_factor_gradients(
    x_TI: Tensor, P: Tensor, Q: Tensor, dy_TO: Tensor, for_P: bool, for_Q: bool
) -> tuple[Tensor, Tensor]:
    """dP and dQ, contiguous and in the type of the factors; what is not asked for is a tensor without numbers.

    Raises:
        ValueError: the shapes do not fit together.
    """
    _check(x_TI, P, Q)
    _check(dy_TO, Q, P)
    if len(dy_TO) != len(x_TI):
        raise ValueError(f"expected as many tokens of dy as of x, which has {len(x_TI)}, got {len(dy_TO)}")
    if not _is_launched(x_TI, P, Q):
        dP, dQ = _plain_gradients(x_TI, P, Q, dy_TO, for_P, for_Q)
    else:
        from einlayers.fused import launch

        if for_P and for_Q:
            dP, dQ = launch.gradients(x_TI, P, Q, dy_TO)
        else:
            dP = launch.gradient(dy_TO, Q, x_TI, P) if for_P else x_TI.new_empty(0)
            dQ = launch.gradient(x_TI, P, dy_TO, Q) if for_Q else x_TI.new_empty(0)
    return dP.to(P.dtype), dQ.to(Q.dtype)


@two_factor.register_fake
def _(x_TI: Tensor, P: Tensor, Q: Tensor) -> Tensor:
    return x_TI.new_empty(x_TI.shape[0], Q.shape[0] * Q.shape[3])


@two_factor_gradients.register_fake
def _(x_TI: Tensor, P: Tensor, Q: Tensor, dy_TO: Tensor, for_P: bool, for_Q: bool) -> tuple[Tensor, Tensor]:
    return P.new_empty(P.shape if for_P else (0,)), Q.new_empty(Q.shape if for_Q else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.asked = inputs[4:]


def _backward(ctx: Any, dy_TO: Tensor) -> tuple[Tensor | None, ...]:
    x_TI, P, Q = ctx.saved_tensors
    for_x, for_P, for_Q = ctx.needs_input_grad
    dx_TI = two_factor(dy_TO, Q, P) if for_x else None
    if not (for_P or for_Q):
        return dx_TI, None, None
    dP, dQ = two_factor_gradients(x_TI, P, Q, dy_TO, for_P, for_Q)
    return dx_TI, dP if for_P else None, dQ if for_Q else None


def _backward_of_gradients(ctx: Any, of_dP: Tensor, of_dQ: Tensor) -> tuple[Tensor | None, ...]:
    x_TI, P, Q, dy_TO = ctx.saved_tensors
    for_x, for_P, for_Q, for_dy, *_ = ctx.needs_input_grad
    had_P, had_Q = ctx.asked
    # dP does not depend on P, nor dQ on Q: what reaches P comes from dQ, and the other way round.
    for_P, for_Q = for_P and had_Q, for_Q and had_P
    of_x = of_P = of_Q = of_dy = None
    if for_x:
        of_x = _sum(two_factor(dy_TO, Q, of_dP) if had_P else None, two_factor(dy_TO, of_dQ, P) if had_Q else None)
    if for_dy:
        of_dy = _sum(two_factor(x_TI, of_dP, Q) if had_P else None, two_factor(x_TI, P, of_dQ) if had_Q else None)
    if for_P or for_Q:
        found = two_factor_gradients(x_TI, of_dP if had_P else P, of_dQ if had_Q else Q, dy_TO, for_P, for_Q)
        of_P, of_Q = found[0] if for_P else None, found[1] if for_Q else None
    return of_x, of_P, of_Q, of_dy, None, None


two_factor.register_autograd(_backward, setup_context=_save)
two_factor_gradients.register_autograd(_backward_of_gradients, setup_context=_save)


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _check(x_TI: Tensor, P: Tensor, Q: Tensor) -> None:
    # A kernel would read beyond the end of what does not fit, without a word.
    if x_TI.dim() != 2 or P.dim() != 4 or Q.dim() != 4:
        raise ValueError(
            f"expected x (T, I), P (g, f, r, i) and Q (f, g, r, o), got {x_TI.dim()}, {P.dim()}, {Q.dim()} axes"
        )
    gamma, phi, rho, i = P.shape
    if x_TI.shape[1] != gamma * i or Q.shape[:3] != (phi, gamma, rho):
        expected = f"x of {gamma * i} features and Q ({phi}, {gamma}, {rho}, o) with P {tuple(P.shape)}"
        raise ValueError(f"expected {expected}, got {tuple(x_TI.shape)} and {tuple(Q.shape)}")


def _is_launched(x_TI: Tensor, P: Tensor, Q: Tensor) -> bool:
    gamma, phi, rho, i = P.shape
    sizes = Sizes(gamma=gamma, i=i, phi=phi, rho=rho, o=Q.shape[3])
    return x_TI.dtype in SERVED and runs_on(x_TI.device) and fits(sizes, x_TI.itemsize)


def _intermediate(x_TI: Tensor, P: Tensor) -> Tensor:
    x_Tgi = x_TI.reshape(x_TI.shape[0], P.shape[0], P.shape[3])
    return torch.einsum("tgi,gfri->tfgr", x_Tgi, P)


def _plain_gradients(
    x_TI: Tensor, P: Tensor, Q: Tensor, dy_TO: Tensor, for_P: bool, for_Q: bool
) -> tuple[Tensor, Tensor]:
    x_Tgi = x_TI.reshape(x_TI.shape[0], P.shape[0], P.shape[3])
    dy_Tfo = dy_TO.reshape(dy_TO.shape[0], Q.shape[0], Q.shape[3])
    dP = torch.einsum("tgfr,tgi->gfri", _intermediate(dy_TO, Q), x_Tgi) if for_P else x_TI.new_empty(0)
    dQ = torch.einsum("tfgr,tfo->fgro", _intermediate(x_TI, P), dy_Tfo) if for_Q else x_TI.new_empty(0)
    return dP.contiguous(), dQ.contiguous()
