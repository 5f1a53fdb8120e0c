"""``y = W x`` by the two factors: a few exact formulations, and the small measured policy that chooses among them.

What costs is not the products but what moves between them: the intermediate is as large as the input times rho, and a
permuted copy of it takes longer than the product that follows. ``zero_copy`` keeps it with the tokens last, where all six
products of a forward and backward pass are batched matrix products on views. ``two_einsums`` is plain torch that every
tracer, mode and device understands. ``multiply_out`` forms W, which pays where the layer is small for its batch.
"""

# B batch, T tokens (the batch, flattened), I inputs, O outputs. The factor that is applied first has the shape (f, j, r,
# g, i) and the second (f, o, r, g, k): i and k the axes that they share with x, j and o those that they share with y, f,
# r and g phi, rho and gamma. With A first, i k j o are alpha, beta, delta, epsilon; with B first the other way round.

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from einlayers.taxonomy import Order

Formulation = Literal["zero_copy", "two_einsums", "multiply_out"]

_MOVED = 40
"""The multiply-adds that an element between the factors takes the time of, coming and going; so does a permuted output."""

_CALLED, _EINSUM_CALLS = 125_000, 16
"""The multiply-adds that the call of one block's product takes the time of, and how many such calls two einsums are."""

_FEW_TOKENS, _TRACED_TOKENS = 128, 1024

_FORMED = 64
"""The tokens for which multiplying by W would take as long as forming W, and its gradient, does; rho adds one for one."""


_IN_CACHE, _LEAST_TOKENS = 2**19, 256
"""How many elements of the intermediate a chunk of tokens makes, and the fewest tokens that keep its products large."""


def contract(x_BI: Tensor, A: Tensor, B: Tensor, *, order: Order, recompute: bool = False) -> Tensor:
    """Map ``(..., gamma beta alpha)`` to ``(..., phi epsilon delta)``.

    ``recompute`` saves ``x`` and the factors alone for backward.
    """
    batch, inputs = x_BI.shape[:-1], x_BI.shape[-1]
    x_TI = x_BI.reshape(-1, inputs)
    formulation = choose(x_TI, A, B, order)
    if formulation == "zero_copy":
        y_TO = zero_copy(x_TI, A, B, order, recompute)
    else:
        apply = multiply_out if formulation == "multiply_out" else two_einsums
        y_TO = _checkpointed(apply, x_TI, A, B, order) if recompute else apply(x_TI, A, B, order)
    return y_TO.view(*batch, y_TO.shape[-1])


def choose(x_TI: Tensor, A: Tensor, B: Tensor, order: Order) -> Formulation:
    """The fastest formulation for these shapes and this type, by the measurements of ``benchmarks/layers.py``."""
    (f, d, r, g, a), e, b = A.shape, B.shape[1], B.shape[4]
    if _is_low_rank(A, B):
        return "two_einsums"
    # A traced program is to hold for every batch, so it must not compare the size of this one.
    T = _TRACED_TOKENS if torch.compiler.is_compiling() else x_TI.shape[0]
    i, k, j, o = (a, b, d, e) if order == "A_first" else (b, a, e, d)
    is_kronecker, is_repeated = f * g * r == 1, k * j > 1
    # A Kronecker's products are large as they are; with few tokens, repeating the blocks would be most of the work.
    is_plain = is_kronecker or (is_repeated and T < _FEW_TOKENS) or _must_be_plain(x_TI)
    slow, middle, fast = (f, j, o) if order == "A_first" else (g, k, i)
    permuted = slow * middle * fast if min(middle, fast) > 1 else 0
    macs = f * r * g * k * j * (i + o)
    moved = f * j * r * g * k + permuted
    num_calls = _EINSUM_CALLS if is_plain else g * k + f * j
    if (T + r + _FORMED) * f * e * d * g * b * a < T * (macs + _MOVED * moved) + _CALLED * num_calls:
        return "multiply_out"
    return "two_einsums" if is_plain else "zero_copy"


def dense_matrix(A: Tensor, B: Tensor) -> Tensor:
    """The matrix ``(phi epsilon delta, gamma beta alpha)`` of the two factors."""
    return torch.einsum("fdrga,fergb->fedgba", A, B).flatten(3).flatten(0, 2)


def multiply_out(x_TI: Tensor, A: Tensor, B: Tensor, order: Order) -> Tensor:
    """One product with W, in any order."""
    return F.linear(x_TI, dense_matrix(A, B))


def two_einsums(x_TI: Tensor, A: Tensor, B: Tensor, order: Order) -> Tensor:
    """One factor after the other, in torch's own words."""
    if _is_low_rank(A, B):  # needs no einsum, whose bookkeeping takes longer than small products
        return F.linear(F.linear(x_TI, A.view(A.shape[2], A.shape[4])), B.view(B.shape[1], B.shape[2]))
    x_Tgba = x_TI.view(x_TI.shape[0], A.shape[3], B.shape[4], A.shape[4])
    if order == "A_first":
        z_Tfdrgb = torch.einsum("tgba,fdrga->tfdrgb", x_Tgba, A)
        return torch.einsum("tfdrgb,fergb->tfed", z_Tfdrgb, B).flatten(1)
    z_Tferga = torch.einsum("tgba,fergb->tferga", x_Tgba, B)
    return torch.einsum("tferga,fdrga->tfed", z_Tferga, A).flatten(1)


def _must_be_plain(x_TI: Tensor) -> bool:
    """Whether something looks on that must see plain torch, or the device and type are none that were measured."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or x_TI.device.type != "cpu"
        or x_TI.dtype not in (torch.float32, torch.float64)
        or torch.is_autocast_enabled("cpu")
    )


def _checkpointed(apply: Callable[..., Tensor], x_TI: Tensor, A: Tensor, B: Tensor, order: Order) -> Tensor:
    y_TO: Tensor = checkpoint(apply, x_TI, A, B, order, use_reentrant=False, preserve_rng_state=False)
    return y_TO


def _is_low_rank(A: Tensor, B: Tensor) -> bool:
    return A.shape[:2].numel() * B.shape[3:].numel() == 1


def zero_copy(x_TI: Tensor, A: Tensor, B: Tensor, order: Order, recompute: bool = False) -> Tensor:
    """Batched products on views; copies an input or an output whose fastest axis is not the one that is multiplied."""
    (f, d, _, g, a), e, b = A.shape, B.shape[1], B.shape[4]
    if order == "A_first":
        return _permute(_apply(x_TI.reshape(-1, g * b, a), A, B, recompute), f, d, e)
    return _apply(_permute(x_TI, g, b, a).reshape(-1, g * a, b), B, A, recompute)


def _apply(x_TGi: Tensor, first: Tensor, second: Tensor, recompute: bool) -> Tensor:
    y_TFo: Tensor = _TwoFactors.apply(x_TGi, first, second, recompute)  # type: ignore[no-untyped-call]
    return y_TFo.flatten(1)


class _TwoFactors(torch.autograd.Function):
    """``(T, g k, i)`` to ``(T, f j, o)``, a chunk of tokens at a time; the intermediate is ``(g k r, f j, T)``."""

    @staticmethod
    def forward(ctx: Any, x_TGi: Tensor, first: Tensor, second: Tensor, recompute: bool) -> Tensor:
        P_GRi, Q_FKo = _blocks(first, second)
        y_TFo = x_TGi.new_empty(len(x_TGi), Q_FKo.shape[0], Q_FKo.shape[2])
        chunks = _chunks(len(x_TGi), P_GRi)
        # A buffer for each chunk where they are saved; else one for all, which stays in the cache.
        buffers = [_buffer(x_TGi[chunks[0]], P_GRi) for _ in (chunks[:1] if recompute else chunks)]
        for n, tokens in enumerate(chunks):
            z_KFT = _intermediate(x_TGi[tokens], P_GRi, Q_FKo, buffers[0 if recompute else n])
            torch.bmm(z_KFT.permute(1, 2, 0), Q_FKo, out=y_TFo[tokens].transpose(0, 1))
        ctx.save_for_backward(x_TGi, first, second, *([] if recompute else [P_GRi, Q_FKo, *buffers]))
        return y_TFo

    @staticmethod
    def backward(ctx: Any, dy_TFo: Tensor) -> tuple[Tensor | None, ...]:
        x_TGi, first, second, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_plain_gradients(dy_TFo, x_TGi, first, second), None
        needs_x, needs_first, needs_second, _ = ctx.needs_input_grad
        P_GRi, Q_FKo = saved[:2] if saved else _blocks(first, second)
        chunks = _chunks(len(x_TGi), P_GRi)
        dx_TGi = torch.empty_like(x_TGi, memory_format=torch.contiguous_format) if needs_x else None
        dP_GRi = dQ_FKo = None
        # What is computed again here alone may be overwritten; what forward saved may be asked for once more.
        buffer = _buffer(x_TGi[chunks[0]], P_GRi)
        for n, tokens in enumerate(chunks):
            x, dy = x_TGi[tokens], dy_TFo[tokens]
            if needs_second:
                z_KFT = _shaped(saved[2 + n], x, Q_FKo) if saved else _intermediate(x, P_GRi, Q_FKo, buffer)
                dQ_FKo = _add_product(dQ_FKo, z_KFT.transpose(0, 1), dy.transpose(0, 1))
            if needs_x or needs_first:
                dz_KFT = _shaped(buffer, x, Q_FKo)
                torch.bmm(Q_FKo, dy.permute(1, 2, 0), out=dz_KFT.transpose(0, 1))
                dz_GRT = dz_KFT.view(P_GRi.shape[0], P_GRi.shape[1], len(x))
                if dx_TGi is not None:
                    torch.bmm(dz_GRT.mT, P_GRi, out=dx_TGi[tokens].transpose(0, 1))
                if needs_first:
                    dP_GRi = _add_product(dP_GRi, dz_GRT, x.transpose(0, 1))
        return dx_TGi, _first_gradient(dP_GRi, first), _second_gradient(dQ_FKo, second), None


def _chunks(num_tokens: int, P_GRi: Tensor) -> list[slice]:
    """Even runs of tokens whose intermediate stays in the cache between the product that makes and the one that uses it."""
    most = max(_LEAST_TOKENS, _IN_CACHE // (P_GRi.shape[0] * P_GRi.shape[1]))
    length = math.ceil(num_tokens / math.ceil(num_tokens / most)) if num_tokens else 1
    return [slice(start, min(start + length, num_tokens)) for start in range(0, max(1, num_tokens), length)]


def _buffer(x_TGi: Tensor, P_GRi: Tensor) -> Tensor:
    """Room for the intermediate of these tokens, which must be the longest chunk."""
    return x_TGi.new_empty(P_GRi.shape[0] * P_GRi.shape[1] * len(x_TGi))


def _shaped(buffer: Tensor, x_TGi: Tensor, Q_FKo: Tensor) -> Tensor:
    """The beginning of the buffer, as an intermediate of these tokens."""
    F, K, T = Q_FKo.shape[0], Q_FKo.shape[1], len(x_TGi)
    return buffer[: F * K * T].view(K, F, T)


def _intermediate(x_TGi: Tensor, P_GRi: Tensor, Q_FKo: Tensor, buffer: Tensor) -> Tensor:
    """The first factor applied: ``(g k r, f j, T)``."""
    z_KFT = _shaped(buffer, x_TGi, Q_FKo)
    torch.bmm(P_GRi, x_TGi.permute(1, 2, 0), out=z_KFT.view(P_GRi.shape[0], P_GRi.shape[1], len(x_TGi)))
    return z_KFT


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(left, right) if total is None else total.baddbmm_(left, right)


def _blocks(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix ``(r f j, i)`` for every g and k, and a matrix ``(g k r, o)`` for every f and j."""
    f, j, r, g, i = first.shape
    o, k = second.shape[1], second.shape[4]
    P_gRi = first.permute(3, 2, 0, 1, 4).reshape(g, r * f * j, i)
    Q_foK = second.permute(0, 1, 3, 4, 2).reshape(f, o, g * k * r)
    return _repeat(P_gRi, k), _repeat(Q_foK, j).mT


def _repeat(blocks: Tensor, times: int) -> Tensor:
    return blocks if times == 1 else blocks.repeat_interleave(times, dim=0)


def _first_gradient(dP_GRi: Tensor | None, first: Tensor) -> Tensor | None:
    """The gradient of the first factor, from those of its blocks."""
    f, j, r, g, i = first.shape
    return None if dP_GRi is None else _shared(dP_GRi.view(g, -1, r, f, j, i)).permute(2, 3, 1, 0, 4)


def _second_gradient(dQ_FKo: Tensor | None, second: Tensor) -> Tensor | None:
    """The gradient of the second factor, from those of its blocks."""
    f, o, r, g, k = second.shape
    return None if dQ_FKo is None else _shared(dQ_FKo.view(f, -1, g, k, r, o)).permute(0, 4, 3, 1, 2)


def _shared(gradients: Tensor) -> Tensor:
    """The gradient of one block, from those of its copies along the second axis."""
    return gradients.squeeze(1) if gradients.shape[1] == 1 else gradients.sum(1)


def _plain_gradients(dy_TFo: Tensor, x_TGi: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three gradients in operations that can be differentiated again."""
    (f, j, _, g, i), o, k = first.shape, second.shape[1], second.shape[4]
    x_Tgki, dy_Tfjo = x_TGi.reshape(-1, g, k, i), dy_TFo.reshape(-1, f, j, o)
    z_Tfjrgk = torch.einsum("tgki,fjrgi->tfjrgk", x_Tgki, first)
    dz_Tfjrgk = torch.einsum("tfjo,forgk->tfjrgk", dy_Tfjo, second)
    return (
        torch.einsum("tfjrgk,fjrgi->tgki", dz_Tfjrgk, first).flatten(1, 2),
        torch.einsum("tfjrgk,tgki->fjrgi", dz_Tfjrgk, x_Tgki),
        torch.einsum("tfjo,tfjrgk->forgk", dy_Tfjo, z_Tfjrgk),
    )


class _Permute(torch.autograd.Function):
    """Exchanges two feature axes: torch's own permuted copy takes twice as long as a gather by index."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, slow: int, middle: int, fast: int) -> Tensor:
        ctx.axes = (slow, fast, middle)
        index_I = torch.arange(x_TI.shape[1], device=x_TI.device).view(slow, middle, fast).mT.flatten()
        return x_TI.index_select(1, index_I)

    @staticmethod
    def backward(ctx: Any, dy_TI: Tensor) -> tuple[Tensor | None, ...]:
        return _permute(dy_TI, *ctx.axes), None, None, None


def _permute(x_TI: Tensor, slow: int, middle: int, fast: int) -> Tensor:
    """``(T, slow middle fast)`` to ``(T, slow fast middle)``."""
    if min(middle, fast) == 1:
        return x_TI
    y_TI: Tensor = _Permute.apply(x_TI, slow, middle, fast)  # type: ignore[no-untyped-call]
    return y_TI
