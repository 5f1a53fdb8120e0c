"""Which layers the fused kernels serve where they are switched on: one table, and where they run.

On a GPU they have never been timed. The limits of the table are those of the model in ``einlayers.fused.tiles``, until
measurements take its place.
"""

# T tokens, I inputs; P and Q as in ``einlayers.fused.sizes``

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from einlayers.fused.sizes import Sizes
from einlayers.fused.tiles import MOST_SHARED, Kernel, choose_tile


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest layer of a type of numbers that the kernels serve.

    ``width`` is of a square layer, others may have as many numbers in W; ``block`` are the features of one block.
    """

    width: int
    block: int
    rank: int


SERVED: dict[torch.dtype, Limits] = {
    torch.bfloat16: Limits(width=2048, block=128, rank=16),
    torch.float16: Limits(width=2048, block=128, rank=16),
    torch.float32: Limits(width=512, block=64, rank=16),
}
"""By the type in which a layer is computed. By the model, wider ones take longer to move between cache and processors than
two products and a copy take to move to memory; wider blocks are products that torch computes well as they are."""

CAPABILITY = (9, 0)
"""The least of a GPU, Hopper's. It must also have the shared memory that the tiles are made for; not all later ones have."""

_ROW = 16
"""Blocks of a multiple of so many bytes are loaded ahead; of others every number is loaded alone."""


def computed_in(x_TI: Tensor, A: Tensor, B: Tensor) -> torch.dtype | None:
    """The type of the products: autocast's, or the one that all have; None where they have several, or on other devices."""
    kind = x_TI.device.type
    if kind not in ("cuda", "cpu"):
        return None
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x_TI.dtype if x_TI.dtype == A.dtype == B.dtype else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch declares no types for it
def serves(gamma: int, i: int, phi: int, rho: int, o: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels run there and are to compute such a layer."""
    return runs_on(device) and is_served(Sizes(gamma=gamma, i=i, phi=phi, rho=rho, o=o), dtype)


def is_served(sizes: Sizes, dtype: torch.dtype) -> bool:
    """Whether the kernels are to compute such a layer where they run."""
    limits = SERVED.get(dtype)
    return (
        limits is not None
        and min(sizes.gamma, sizes.phi) > 1  # otherwise the intermediate needs no other order
        and sizes.weights < sizes.inputs * sizes.outputs  # otherwise W itself is the smaller layer
        and sizes.inputs * sizes.outputs <= limits.width**2
        and max(sizes.i, sizes.o) <= limits.block
        and sizes.i * dtype.itemsize % _ROW == sizes.o * dtype.itemsize % _ROW == 0
        and sizes.rho <= limits.rank
        and fits(sizes, dtype.itemsize)
    )


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run there: on a GPU, or, interpreted, on the CPU."""
    if device.type == "cuda":
        return _way() == "compiled" and is_large_enough(torch.cuda.get_device_properties(device))
    return device.type == "cpu" and _way() == "interpreted"


def is_large_enough(gpu: Any) -> bool:  # torch declares no types for what it tells of a GPU
    """Whether the kernels fit on a GPU of these properties."""
    return (gpu.major, gpu.minor) >= CAPABILITY and getattr(gpu, "shared_memory_per_block_optin", 0) >= MOST_SHARED


@lru_cache(maxsize=4096)
def fits(sizes: Sizes, itemsize: int) -> bool:
    """Whether every kernel of a training step has a tile."""
    kernels: tuple[Kernel, ...] = ("two_factor", "gradient")
    ways = (sizes, sizes.transposed())
    return all(choose_tile(kernel, way, itemsize, 1) is not None for kernel in kernels for way in ways)


@lru_cache(maxsize=1)
def _way() -> Literal["compiled", "interpreted"] | None:
    """How the kernels run in this process; None without Triton."""
    if find_spec("triton") is None:
        return None
    from einlayers.fused import launch

    return "interpreted" if launch.IS_INTERPRETED else "compiled"
