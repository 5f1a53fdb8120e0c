"""Layers to run the kernels on, and the same by plain einsums in float64."""

# T tokens, I inputs, O outputs; g i f r o as in ``einlayers.fused.sizes``

import torch
from torch import Tensor

from einlayers.fused.policy import is_large_enough
from einlayers.fused.sizes import Sizes

HAS_GPU = torch.cuda.is_available() and is_large_enough(torch.cuda.get_device_properties(0))
DEVICE = "cuda" if HAS_GPU else "cpu"

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""Of the norm."""

SIZES = {
    "one tile": Sizes(gamma=16, i=16, phi=8, rho=1, o=16),
    "nothing a power of two": Sizes(gamma=5, i=3, phi=7, rho=1, o=6),
    "several tiles of gamma": Sizes(gamma=37, i=9, phi=4, rho=1, o=5),
    "several tiles of phi": Sizes(gamma=4, i=8, phi=70, rho=1, o=3),
    "several of both, rank 3": Sizes(gamma=11, i=5, phi=35, rho=3, o=17),
    "rank 4": Sizes(gamma=8, i=8, phi=8, rho=4, o=8),
    "rank 20": Sizes(gamma=3, i=4, phi=5, rho=20, o=4),
    "wide": Sizes(gamma=3, i=6, phi=9, rho=2, o=40),
    "tall": Sizes(gamma=20, i=30, phi=2, rho=2, o=3),
    "one block in": Sizes(gamma=1, i=20, phi=6, rho=2, o=4),
    "one number": Sizes(gamma=1, i=1, phi=1, rho=1, o=1),
}


def layer(sizes: Sizes, num_tokens: int, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> tuple[Tensor, ...]:
    """x, P, Q and dy: normal numbers, of which z and y have a size near 1."""
    torch.manual_seed(seed)
    x_TI, dy_TO = torch.randn(num_tokens, sizes.inputs), torch.randn(num_tokens, sizes.outputs)
    P = torch.randn(sizes.gamma, sizes.phi, sizes.rho, sizes.i) / sizes.i**0.5
    Q = torch.randn(sizes.phi, sizes.gamma, sizes.rho, sizes.o) / (sizes.gamma * sizes.rho) ** 0.5
    return tuple(tensor.to(DEVICE, dtype) for tensor in (x_TI, P, Q, dy_TO))


def exact(x_TI: Tensor, P: Tensor, Q: Tensor) -> Tensor:
    """y by one einsum of three operands."""
    x_Tgi = x_TI.reshape(len(x_TI), P.shape[0], P.shape[3])
    return torch.einsum("tgi,gfri,fgro->tfo", x_Tgi, P, Q).flatten(1)


def exact_gradients(x_TI: Tensor, P: Tensor, Q: Tensor, dy_TO: Tensor) -> tuple[Tensor, ...]:
    """dx, dP and dQ in float64."""
    leaves = [tensor.double().requires_grad_() for tensor in (x_TI, P, Q)]
    return torch.autograd.grad(exact(*leaves), leaves, dy_TO.double())


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Their difference is within the tolerance of the type, and every number was written."""
    assert found.shape == expected.shape
    assert found.isfinite().all()
    norm = expected.norm().item()
    assert (found.double() - expected).norm().item() <= TOLERANCES[dtype] * norm


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A buffer that shows what was not written."""
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)
