"""``y = W x`` by the two factors: a few exact formulations, and the small measured policy that chooses among them.

What costs is not the products but what moves between them: the intermediate is as large as the input times rho, and a
permuted copy of it takes longer than the product that follows. ``zero_copy`` keeps it with the tokens last, where all six
products of a forward and backward pass are batched matrix products on views. ``two_einsums`` is plain torch that every
tracer, mode and device understands. ``multiply_out`` forms W, which pays where the layer is small for its batch. ``fused``
keeps the intermediate on the chip of a GPU; only where ``einlayers.fused`` is switched on and serves the layer.
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

from einlayers.fused import switch
from einlayers.taxonomy import Order

Formulation = Literal["zero_copy", "two_einsums", "multiply_out", "fused"]

_MOVED = 40
"""The multiply-adds that an element between the factors takes the time of, coming and going; so does a permuted output."""

_CALLED, _EINSUM_CALLS = 125_000, 16
"""The multiply-adds that the call of one block's product takes the time of, and how many such calls two einsums are."""

_FEW_TOKENS, _TRACED_TOKENS = 128, 1024
"""Below how many tokens repeated blocks do not pay, and how many a traced program is taken to have."""

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
    elif formulation == "fused":  # which saves nothing else anyway
        y_TO = fused(x_TI, A, B, order)
    else:
        apply = multiply_out if formulation == "multiply_out" else two_einsums
        y_TO = _checkpointed(apply, x_TI, A, B, order) if recompute else apply(x_TI, A, B, order)
    return y_TO.view(*batch, y_TO.shape[-1])


def choose(x_TI: Tensor, A: Tensor, B: Tensor, order: Order) -> Formulation:
    """The fastest formulation for these shapes and this type, by the measurements of ``benchmarks/layers.py``."""
    (f, d, r, g, a), e, b = A.shape, B.shape[1], B.shape[4]
    if _is_low_rank(A, B):
        return "two_einsums"
    if _is_fused(x_TI, A, B, order):
        return "fused"
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
    if _must_be_plain(x_TI):
        return F.linear(x_TI, dense_matrix(A, B))
    y_TO: Tensor = _MultipliedOut.apply(x_TI, A, B)  # type: ignore[no-untyped-call]
    return y_TO


class _MultipliedOut(torch.autograd.Function):
    """What autograd would do, without its bookkeeping, which takes longer than the products of so small a layer."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, A: Tensor, B: Tensor) -> Tensor:
        W_OI = dense_matrix(A, B)
        ctx.save_for_backward(x_TI, A, B, W_OI)
        return F.linear(x_TI, W_OI)

    @staticmethod
    def backward(ctx: Any, dy_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, A, B, W_OI = ctx.saved_tensors
        needs_x, needs_A, needs_B = ctx.needs_input_grad
        if torch.is_grad_enabled():  # asked for gradients that can be differentiated again
            W_OI = dense_matrix(A, B)
        dA = dB = None
        if needs_A or needs_B:
            (f, d, _, g, a), e, b = A.shape, B.shape[1], B.shape[4]
            dW = (dy_TO.mT @ x_TI).view(f, e, d, g, b, a)
            dA = torch.einsum("fedgba,fergb->fdrga", dW, B) if needs_A else None
            dB = torch.einsum("fedgba,fdrga->fergb", dW, A) if needs_B else None
        return dy_TO @ W_OI if needs_x else None, dA, dB


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


def fused(x_TI: Tensor, A: Tensor, B: Tensor, order: Order) -> Tensor:
    """By the kernels of ``einlayers.fused``, in autocast's type where it is on; no factor has two axes of x or of y."""
    from einlayers.fused import ops, policy  # a second to import, for those alone who want it

    first, second = (A, B) if order == "A_first" else (B, A)
    dtype = policy.computed_in(x_TI, A, B)
    P_gfri = first.squeeze(1).permute(2, 0, 1, 3).to(dtype)
    Q_fgro = second.squeeze(4).permute(0, 3, 2, 1).to(dtype)
    y_TO: Tensor = ops.two_factor(x_TI.to(dtype), P_gfri.contiguous(), Q_fgro.contiguous())
    return y_TO


def _is_fused(x_TI: Tensor, A: Tensor, B: Tensor, order: Order) -> bool:
    if not switch.is_on() or torch._C._are_functorch_transforms_active():
        return False
    from einlayers.fused import policy

    first, second = (A, B) if order == "A_first" else (B, A)
    (f, j, r, g, i), o, k = first.shape, second.shape[1], second.shape[4]
    dtype = policy.computed_in(x_TI, A, B)
    return j == k == 1 and dtype is not None and policy.serves(g, i, f, r, o, dtype, x_TI.device)


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
    """Batched products on views; gathers inputs or outputs whose fastest axis is not the one that is multiplied."""
    y_TO: Tensor = _ZeroCopy.apply(x_TI, A, B, order, recompute)  # type: ignore[no-untyped-call]
    return y_TO


class _ZeroCopy(torch.autograd.Function):
    """A chunk of tokens at a time; the intermediate ``(g k r, f j, T)`` of a chunk stays in the cache."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, A: Tensor, B: Tensor, order: Order, recompute: bool) -> Tensor:
        ctx.order = order
        plan = _Plan(A, B, order)
        P_GRi, Q_FKo = plan.blocks(A, B)
        y_TO = x_TI.new_empty(len(x_TI), plan.outputs)
        saved = []
        for x, y in zip(plan.chunks(x_TI), plan.chunks(y_TO), strict=True):
            z_KFT = plan.intermediate(plan.read_inputs(x), P_GRi)
            _write(z_KFT.permute(1, 2, 0), Q_FKo, y, plan.outputs_written)
            if not recompute:
                saved.append(z_KFT)
        ctx.save_for_backward(x_TI, A, B, *([P_GRi, Q_FKo, *saved] if saved else []))
        return y_TO

    @staticmethod
    def backward(ctx: Any, dy_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, A, B, *saved = ctx.saved_tensors
        needs_x, needs_A, needs_B, _, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # asked for gradients that can be differentiated again
            wanted = [tensor for tensor in (x_TI, A, B) if tensor.requires_grad]
            found = iter(torch.autograd.grad(two_einsums(x_TI, A, B, ctx.order), wanted, dy_TO, create_graph=True))
            return *(next(found) if tensor.requires_grad else None for tensor in (x_TI, A, B)), None, None
        plan = _Plan(A, B, ctx.order)
        needs_first, needs_second = (needs_A, needs_B) if ctx.order == "A_first" else (needs_B, needs_A)
        P_GRi, Q_FKo, *z_chunks = saved or plan.blocks(A, B)
        dx_TI = torch.empty_like(x_TI, memory_format=torch.contiguous_format)
        dP_GRi = dQ_FKo = dz_KFT = None
        for n, (x, dx, dy) in enumerate(zip(*map(plan.chunks, (x_TI, dx_TI, dy_TO)), strict=True)):
            x_TGi, dy_TFo = plan.read_inputs(x), plan.read_outputs(dy)
            z_KFT = z_chunks[n] if z_chunks else plan.intermediate(x_TGi, P_GRi)
            if needs_second:
                dQ_FKo = _add_product(dQ_FKo, z_KFT.transpose(0, 1), dy_TFo.transpose(0, 1))
            if needs_x or needs_first:
                # What was computed again for this pass may be overwritten; what was saved may be asked for once more.
                if not z_chunks:
                    dz_KFT = z_KFT
                elif dz_KFT is None or dz_KFT.shape != z_KFT.shape:
                    dz_KFT = torch.empty_like(z_KFT)
                torch.bmm(Q_FKo, dy_TFo.permute(1, 2, 0), out=dz_KFT.transpose(0, 1))
                dz_GRT = dz_KFT.view(plan.G, plan.R, len(x))
                if needs_x:
                    _write(dz_GRT.mT, P_GRi, dx, plan.inputs_written)
                if needs_first:
                    dP_GRi = _add_product(dP_GRi, dz_GRT, x_TGi.transpose(0, 1))
        return dx_TI if needs_x else None, *plan.gradients(dP_GRi, dQ_FKo), None, None


class _Plan:
    """The axes of one application by their roles, and which features its products read and write in another order."""

    def __init__(self, A: Tensor, B: Tensor, order: Order) -> None:
        first, second = (A, B) if order == "A_first" else (B, A)
        (f, j, r, g, i), o, k = first.shape, second.shape[1], second.shape[4]
        self.f, self.g, self.i, self.j, self.k, self.o, self.r, self.order = f, g, i, j, k, o, r, order
        self.F, self.G, self.K, self.R = f * j, g * k, g * k * r, r * f * j
        self.outputs = f * j * o
        self.inputs_read = self.inputs_written = self.outputs_read = self.outputs_written = None
        # The products read (g, k, i) and write (f, j, o). With A first y is (f, o, j); with B first x is (g, i, k).
        if order == "A_first" and min(j, o) > 1:
            self.outputs_read, self.outputs_written = _exchange(f, o, j, A.device), _exchange(f, j, o, A.device)
        if order == "B_first" and min(i, k) > 1:
            self.inputs_read, self.inputs_written = _exchange(g, i, k, A.device), _exchange(g, k, i, A.device)

    def chunks(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Even runs of tokens whose intermediate stays in the cache between the product that makes and that uses it."""
        most = max(_LEAST_TOKENS, _IN_CACHE // (self.F * self.K))
        num_chunks = math.ceil(len(tokens) / most)
        return (tokens,) if num_chunks <= 1 else torch.split(tokens, math.ceil(len(tokens) / num_chunks))

    def blocks(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """A matrix ``(r f j, i)`` for every g and k, and a matrix ``(g k r, o)`` for every f and j."""
        first, second = (A, B) if self.order == "A_first" else (B, A)
        P_gRi = first.permute(3, 2, 0, 1, 4).reshape(self.g, self.R, self.i)
        Q_foK = second.permute(0, 1, 3, 4, 2).reshape(self.f, self.o, self.K)
        return _repeat(P_gRi, self.k), _repeat(Q_foK, self.j).mT

    def gradients(self, dP_GRi: Tensor | None, dQ_FKo: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of A and B, from those of the blocks."""
        first = second = None
        if dP_GRi is not None:
            blocks = dP_GRi.view(self.g, self.k, self.r, self.f, self.j, self.i)
            first = _sum_repeated(blocks).permute(2, 3, 1, 0, 4)
        if dQ_FKo is not None:
            blocks = dQ_FKo.view(self.f, self.j, self.g, self.k, self.r, self.o)
            second = _sum_repeated(blocks).permute(0, 4, 3, 1, 2)
        return (first, second) if self.order == "A_first" else (second, first)

    def intermediate(self, x_TGi: Tensor, P_GRi: Tensor) -> Tensor:
        """The first factor applied: ``(g k r, f j, T)``."""
        return torch.bmm(P_GRi, x_TGi.permute(1, 2, 0)).view(self.K, self.F, len(x_TGi))

    def read_inputs(self, x_TI: Tensor) -> Tensor:
        """``(T, g k, i)``"""
        return _gather(x_TI, self.inputs_read).view(len(x_TI), self.G, self.i)

    def read_outputs(self, dy_TO: Tensor) -> Tensor:
        """``(T, f j, o)``"""
        return _gather(dy_TO, self.outputs_read).view(len(dy_TO), self.F, self.o)


def _exchange(slow: int, middle: int, fast: int, device: torch.device) -> Tensor:
    """The indices that bring ``(slow, middle, fast)`` into the order ``(slow, fast, middle)``."""
    return torch.arange(slow * middle * fast, device=device).view(slow, middle, fast).mT.flatten()


def _gather(x_TI: Tensor, index_I: Tensor | None) -> Tensor:
    # Torch's own permuted copy takes twice as long as a gather by index.
    return x_TI if index_I is None else x_TI.index_select(1, index_I)


def _write(left: Tensor, right: Tensor, out_TI: Tensor, index_I: Tensor | None) -> None:
    """The product of each pair of blocks into rows of ``out``, side by side, or in the order of the index."""
    target_TI = out_TI if index_I is None else torch.empty_like(out_TI)
    torch.bmm(left, right, out=target_TI.view(len(out_TI), len(left), -1).transpose(0, 1))
    if index_I is not None:
        torch.index_select(target_TI, 1, index_I, out=out_TI)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(left, right) if total is None else total.baddbmm_(left, right)


def _repeat(blocks: Tensor, times: int) -> Tensor:
    return blocks if times == 1 else blocks.repeat_interleave(times, dim=0)


def _sum_repeated(gradients: Tensor) -> Tensor:
    """The gradient of each block, from those of its copies along the second axis."""
    return gradients.squeeze(1) if gradients.shape[1] == 1 else gradients.sum(1)
