"""The nearest structured matrix to a dense one: how a trained weight becomes a structured layer.

phi and gamma index both factors, so every structure is a grid of independent blocks (phi, gamma). Write a block with
(delta, alpha) as its rows and (epsilon, beta) as its columns, and its formula is ``sum_r A[(d,a), r] B[r, (e,b)]``: any
matrix of rank rho, whose nearest one is a truncated SVD. For Monarch this is 2204.00595, theorem 1; for one Kronecker
product the rearrangement of Van Loan and Pitsianis (1993).

Padded features are free. Where the live entries of a block still form a rectangle, their SVD is all there is to know;
that is so for every block-tensor-train. Otherwise a low-rank matrix has to be completed, which is NP-hard in general
(Gillis and Glineur, 1012.0197): alternating least squares descends from several starts, without a promise.
"""

# O outputs, I inputs; a b g d e f r: the sizes of alpha beta gamma delta epsilon phi rho
# N blocks with the same live entries, X the rows (delta, alpha) of a block, Y its columns (epsilon, beta)

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from einlayers.dims import Dims, Policy, check_size, resolve
from einlayers.errors import FieldError
from einlayers.linear import EinsumLinear, fit
from einlayers.spectrum import check_weight
from einlayers.theta import Theta

NUM_RESTARTS, NUM_SWEEPS, TOLERANCE = 3, 200, 1e-6

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projection:
    """The factors that a dense weight was projected to, in the dtype of the weight.

    ``error`` is ``||W - W_s|| / ||W||`` in Frobenius norms between the requested widths, with the factors as they are
    returned; 0 for the zero matrix. ``optimal``: no matrix of this structure is nearer, but for rounding.
    """

    dims: Dims
    A: Tensor
    """``(phi, delta, rho, gamma, alpha)``"""
    B: Tensor
    """``(phi, epsilon, rho, gamma, beta)``"""
    error: float
    optimal: bool

    def layer(self, bias: Tensor | None = None) -> EinsumLinear:
        """The layer of these factors, on their device and in their dtype, that shares no memory with them.

        Raises:
            FieldError: the bias is not of shape ``(d_out,)``.
        """
        state = {"A": self.A.clone(), "B": self.B.clone()}
        if bias is not None:
            if bias.shape != (self.dims.d_out,):
                raise FieldError("bias", expected=f"the shape ({self.dims.d_out},)", got=tuple(bias.shape))
            state["bias"] = bias.detach().to(self.A, copy=True)
        # Made without memory, so that nothing is drawn: the caller's random numbers stay as they were.
        layer = EinsumLinear.from_dims(self.dims, bias=bias is not None, device="meta")
        layer.load_state_dict(state, assign=True)
        return layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """How long ``complete`` descends: from the SVD and ``num_restarts`` random points, for at most ``num_sweeps`` each.

    A descent ends early where a sweep lowers no block's squared error by more than a share ``tolerance`` of it.

    Raises:
        FieldError: a number is out of its range.
    """

    num_restarts: int = NUM_RESTARTS
    num_sweeps: int = NUM_SWEEPS
    tolerance: float = TOLERANCE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_restarts != 0:
            check_size("num_restarts", self.num_restarts)
        check_size("num_sweeps", self.num_sweeps)
        if not 0 <= self.tolerance < 1:
            raise FieldError("tolerance", expected="a share from 0 to below 1", got=self.tolerance)


@torch.no_grad()
def project(
    weight_OI: Tensor,
    structure: Theta | str | Dims,
    *,
    policy: Policy = "exact",
    num_restarts: int = NUM_RESTARTS,
    num_sweeps: int = NUM_SWEEPS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Projection:
    """The matrix of a structure that is nearest, in Frobenius norm, to a real or complex weight ``(d_out, d_in)``.

    ``structure`` is a theta, its name or text, resolved at the widths of the weight, or axes for these widths. The last
    four arguments are for blocks that have to be completed (``Descent``). The square roots of the singular values go
    to each factor. A block of zeros gets zeros in both factors, which gradients do not leave.

    Raises:
        FieldError: the weight is not a finite matrix, the axes are for other widths, or an argument is out of range.
    """
    W_OI = check_weight(weight_OI)
    dims = _dims(structure, W_OI, policy)
    descent = Descent(num_restarts=num_restarts, num_sweeps=num_sweeps, tolerance=tolerance, seed=seed)
    # Squares of entries of any size neither overflow nor vanish once the largest is 1.
    scale = W_OI.abs().max().item() or 1.0
    A, B, is_optimal = _factors(W_OI / scale, dims, descent)
    A, B = ((factor * math.sqrt(scale)).to(weight_OI.dtype) for factor in (A, B))
    error = _error(W_OI / scale, A.to(W_OI) / math.sqrt(scale), B.to(W_OI) / math.sqrt(scale))
    return Projection(dims=dims, A=A, B=B, error=error, optimal=is_optimal or error == 0)


def truncated_svd(target_NXY: Tensor, rank: int) -> Factors:
    """Factors ``(N, X, rank)`` and ``(N, rank, Y)`` of the nearest matrices of a rank (Eckart and Young, 1936).

    Both get the square roots of the singular values; where there are fewer of them than the rank, the rest is zero.
    """
    U_NXK, sigma_NK, V_NKY = torch.linalg.svd(target_NXY, full_matrices=False)
    root_N1K = sigma_NK.sqrt().unsqueeze(-2)
    return fit((U_NXK * root_N1K)[..., :rank], rank), fit((V_NKY.mT * root_N1K)[..., :rank], rank).mT


def complete(target_NXY: Tensor, live_XY: Tensor, rank: int, descent: Descent) -> Factors:
    """Factors ``(N, X, rank)`` and ``(N, rank, Y)`` whose product is near the live part of a target that is 0 elsewhere.

    The best of all descents, for each block on its own. Where no nearest matrix exists (masks let the infimum lie at
    infinity) the factors grow slowly with the sweeps. Both factors are equally large, as after ``truncated_svd``.
    """
    generator = torch.Generator(target_NXY.device).manual_seed(descent.seed)
    best_N, A_NXr, B_NrY = descend(target_NXY, live_XY, truncated_svd(target_NXY, rank)[1], descent)
    for _ in range(descent.num_restarts):
        start_NrY = torch.empty_like(B_NrY).normal_(generator=generator)
        error_N, next_A_NXr, next_B_NrY = descend(target_NXY, live_XY, start_NrY, descent)
        A_NXr, B_NrY = _where(error_N < best_N, (next_A_NXr, next_B_NrY), (A_NXr, B_NrY))
        best_N = torch.minimum(best_N, error_N)
    return _balanced(A_NXr, B_NrY)


def descend(target_NXY: Tensor, live_XY: Tensor, start_NrY: Tensor, descent: Descent) -> tuple[Tensor, Tensor, Tensor]:
    """The squared error of each block after one descent from a right factor ``(N, rank, Y)``, and the two factors.

    Alternating least squares: for one factor held, the rows of the other are independent least-squares problems, one
    for each distinct row of the mask. No sweep raises the error of a block.
    """
    rows, columns = _groups(live_XY), _groups(live_XY.mT)
    B_NrY, A_NXr = start_NrY, _left(target_NXY, start_NrY, rows)
    error_N = _live_error(target_NXY, live_XY, A_NXr, B_NrY)
    for _ in range(descent.num_sweeps):
        next_B_NrY = _left(target_NXY.mT, A_NXr.mT, columns).mT
        next_A_NXr = _left(target_NXY, next_B_NrY, rows)
        next_N = _live_error(target_NXY, live_XY, next_A_NXr, next_B_NrY)
        is_slow = bool((next_N >= error_N * (1 - descent.tolerance)).all())
        A_NXr, B_NrY = _where(next_N < error_N, (next_A_NXr, next_B_NrY), (A_NXr, B_NrY))
        error_N = torch.minimum(error_N, next_N)
        if is_slow:
            break
    return error_N, A_NXr, B_NrY


def _dims(structure: Theta | str | Dims, W_OI: Tensor, policy: Policy) -> Dims:
    d_out, d_in = W_OI.shape
    if not isinstance(structure, Dims):
        return resolve(structure, d_in, d_out, policy)
    if (structure.d_in, structure.d_out) != (d_in, d_out):
        widths = f"{structure.d_in} -> {structure.d_out}"
        raise FieldError("structure", expected=f"axes for a layer {d_in} -> {d_out}, as the weight is", got=widths)
    return structure


def _factors(W_OI: Tensor, dims: Dims, descent: Descent) -> tuple[Tensor, Tensor, bool]:
    """Both factors and whether they are optimal, by kinds of blocks: at most full, partly live and dead, on each side."""
    a, b, g, d, e, f, r = dims.axes
    W_fedgba = fit(fit(W_OI, dims.inputs).mT, dims.outputs).mT.reshape(f, e, d, g, b, a)
    target_fgXY = W_fedgba.permute(0, 3, 2, 5, 1, 4).reshape(f, g, d * a, e * b)
    A_fgXr, B_fgrY = W_OI.new_zeros(f, g, d * a, r), W_OI.new_zeros(f, g, r, e * b)
    is_optimal = True
    for of_phi, live_ed in _kinds(dims.d_out, (f, e, d), W_OI.device):
        for of_gamma, live_ba in _kinds(dims.d_in, (g, b, a), W_OI.device):
            live_XY = (live_ed.mT[:, None, :, None] & live_ba.mT[None, :, None, :]).reshape(d * a, e * b)
            blocks = (of_phi[:, None], of_gamma)
            shape, target_NXY = target_fgXY[blocks].shape[:2], target_fgXY[blocks].flatten(0, 1)
            is_svd = _is_rectangle(live_XY) or r >= min(_num_live(live_XY), _num_live(live_XY.mT))
            A_NXr, B_NrY = truncated_svd(target_NXY, r) if is_svd else complete(target_NXY, live_XY, r, descent)
            A_fgXr[blocks], B_fgrY[blocks] = A_NXr.reshape(*shape, -1, r), B_NrY.reshape(*shape, r, -1)
            is_optimal &= is_svd
    A_fdrga = A_fgXr.reshape(f, g, d, a, r).permute(0, 2, 4, 1, 3)
    B_fergb = B_fgrY.reshape(f, g, r, e, b).permute(0, 3, 2, 1, 4)
    return A_fdrga.contiguous(), B_fergb.contiguous(), is_optimal


def _kinds(width: int, axes: tuple[int, int, int], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The blocks of one side that have the same live features: their indices, and the features as (second, first)."""
    live = (torch.arange(math.prod(axes), device=device) < width).reshape(axes)
    kinds, kind_of_block = torch.unique(live, dim=0, return_inverse=True)
    for kind, live_features in enumerate(kinds):
        yield (kind_of_block == kind).nonzero().flatten(), live_features


def _num_live(live_XY: Tensor) -> int:
    """How many rows have live entries: a bound on the rank of the block whose other entries are zero."""
    return int(live_XY.any(1).sum())


def _is_rectangle(live_XY: Tensor) -> bool:
    return torch.equal(live_XY, live_XY.any(1, keepdim=True) & live_XY.any(0, keepdim=True))


def _groups(live_XY: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The rows with the same live columns, and these columns: at most four groups for a block of a layer."""
    patterns, pattern_of_row = torch.unique(live_XY, dim=0, return_inverse=True)
    return [((pattern_of_row == k).nonzero(), columns.nonzero().flatten()) for k, columns in enumerate(patterns)]


def _left(target_NXY: Tensor, B_NrY: Tensor, groups: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The left factor that fits the live entries best, and the smallest of these where B leaves a choice."""
    A_NXr = target_NXY.new_zeros(*target_NXY.shape[:2], B_NrY.shape[1])
    for rows, columns in groups:
        A_NXr[:, rows.flatten()] = target_NXY[:, rows, columns] @ torch.linalg.pinv(B_NrY[..., columns])
    return A_NXr


def _where(is_first_N: Tensor, first: Factors, second: Factors) -> Factors:
    A_NXr, B_NrY = (torch.where(is_first_N[:, None, None], *pair) for pair in zip(first, second, strict=True))
    return A_NXr, B_NrY


def _live_error(target_NXY: Tensor, live_XY: Tensor, A_NXr: Tensor, B_NrY: Tensor) -> Tensor:
    return ((A_NXr @ B_NrY - target_NXY) * live_XY).abs().square().sum((1, 2))


def _balanced(A_NXr: Tensor, B_NrY: Tensor) -> Factors:
    """The same products with equally large factors, like those of ``truncated_svd``."""
    Q_NXk, S_Nkr = torch.linalg.qr(A_NXr)
    P_NYk, T_Nkr = torch.linalg.qr(B_NrY.mT)
    left, right = truncated_svd(S_Nkr @ T_Nkr.mT, A_NXr.shape[2])
    return Q_NXk @ left, right @ P_NYk.mT


def _error(W_OI: Tensor, A: Tensor, B: Tensor) -> float:
    """The relative error; features that the factors do not hold are as if they were zero."""
    d_out, d_in = W_OI.shape
    product_OI = torch.einsum("fdrga,fergb->fedgba", A, B).flatten(3).flatten(0, 2)
    nearest_OI = fit(fit(product_OI, d_in).mT, d_out).mT
    norm = torch.linalg.norm(W_OI).item()
    return torch.linalg.norm(W_OI - nearest_OI).item() / norm if norm else 0.0
