"""The matrix of a two-factor einsum, and its gradients, one entry at a time."""

# O outputs, I inputs; a b g d e f r: the sizes of alpha beta gamma delta epsilon phi rho

import torch
from torch import Tensor

from einlayers.dims import Dims

TOLERANCE = 1e-10
"""Between float64 arithmetic in our order and in the order of plain loops."""


def matrix(A: Tensor, B: Tensor, dims: Dims) -> Tensor:
    """W[(phi,eps,delta),(gamma,beta,alpha)] = sum over rho; what the axes do not hold is zero."""
    A_, B_ = A.tolist(), B.tolist()
    W = [[0.0] * dims.d_in for _ in range(dims.d_out)]
    for o, (f, e, d) in _features(dims.phi, dims.epsilon, dims.delta, dims.d_out):
        for i, (g, b, a) in _features(dims.gamma, dims.beta, dims.alpha, dims.d_in):
            for r in range(dims.rho):
                W[o][i] += A_[f][d][r][g][a] * B_[f][e][r][g][b]
    return torch.tensor(W, dtype=torch.float64)


def gradients(A: Tensor, B: Tensor, dims: Dims, grad_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of both factors, from that of the matrix, by the product rule."""
    A_, B_, grad = A.tolist(), B.tolist(), grad_OI.tolist()
    grad_A, grad_B = torch.zeros_like(A).tolist(), torch.zeros_like(B).tolist()
    for o, (f, e, d) in _features(dims.phi, dims.epsilon, dims.delta, dims.d_out):
        for i, (g, b, a) in _features(dims.gamma, dims.beta, dims.alpha, dims.d_in):
            for r in range(dims.rho):
                grad_A[f][d][r][g][a] += grad[o][i] * B_[f][e][r][g][b]
                grad_B[f][e][r][g][b] += grad[o][i] * A_[f][d][r][g][a]
    return torch.tensor(grad_A, dtype=torch.float64), torch.tensor(grad_B, dtype=torch.float64)


def normal(*shape: int) -> Tensor:
    """Standard normal float64 numbers, the same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _features(slow: int, middle: int, fast: int, width: int) -> list[tuple[int, tuple[int, int, int]]]:
    """The first ``width`` features of three flattened axes, the last one fastest."""
    indices = [(s, m, f) for s in range(slow) for m in range(middle) for f in range(fast)]
    return list(enumerate(indices[:width]))
