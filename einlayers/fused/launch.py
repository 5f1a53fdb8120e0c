"""How the kernels are called: which tiles, which grid, into which buffers. Every number of an output buffer is written."""

# T tokens, I inputs, O outputs; P (g, f, r, i) and Q (f, g, r, o) as in ``einlayers.fused.sizes``; S splits

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from einlayers.fused import kernels
from einlayers.fused.sizes import Sizes
from einlayers.fused.tiles import Kernel, Tile, choose_tile, num_splits

IS_INTERPRETED = not isinstance(kernels.two_factor_kernel, triton.JITFunction)
"""Whether ``TRITON_INTERPRET=1`` was set when the kernels were loaded; they then run on the CPU, and nowhere else."""


def two_factor(x_TI: Tensor, P: Tensor, Q: Tensor) -> Tensor:
    """y; of ``(dy, Q, P)`` it is dx.

    Raises:
        ValueError: no tile of these sizes fits on the chip.
    """
    y_TO = x_TI.new_empty(len(x_TI), Q.shape[0] * Q.shape[3])
    two_factor_into(x_TI, P, Q, y_TO, _tile("two_factor", sizes_of(P, Q), x_TI))
    return y_TO


def two_factor_into(x_TI: Tensor, P: Tensor, Q: Tensor, y_TO: Tensor, tile: Tile) -> None:
    """Write y into a contiguous buffer."""
    sizes = sizes_of(P, Q)
    x_TI, P, Q = _rows(x_TI), P.contiguous(), Q.contiguous()
    grid = (triton.cdiv(len(x_TI), tile.tokens) * triton.cdiv(sizes.phi, tile.phi),)
    if len(x_TI):
        with _device_of(x_TI):
            kernels.two_factor_kernel[grid](
                x_TI, P, Q, y_TO, len(x_TI), x_TI.stride(0), **constants(sizes, tile), **_how(tile, x_TI.dtype)
            )


def gradient(x_TI: Tensor, P: Tensor, dy_TO: Tensor, Q: Tensor) -> Tensor:
    """dQ ``(f, g, r, o)`` in float32, Q giving nothing but its shape; of ``(dy, Q, x, P)`` it is dP.

    Raises:
        ValueError: no tile of these sizes fits on the chip.
    """
    sizes = sizes_of(P, Q)
    tile = _tile("gradient", sizes, x_TI)
    dQ_S = _splits(sizes, tile, x_TI, Q)
    gradients_into(x_TI, P, Q, dy_TO, None, dQ_S, tile)
    return dQ_S.sum(0)


def gradients(x_TI: Tensor, P: Tensor, Q: Tensor, dy_TO: Tensor) -> tuple[Tensor, Tensor]:
    """dP and dQ in float32: by one kernel, or by two where the sums of both do not fit on the chip.

    Raises:
        ValueError: no tile of these sizes fits on the chip.
    """
    sizes = sizes_of(P, Q)
    tile = choose_tile("gradients", sizes, x_TI.itemsize, len(x_TI))
    if tile is None:
        return gradient(dy_TO, Q, x_TI, P), gradient(x_TI, P, dy_TO, Q)
    dP_S, dQ_S = _splits(sizes, tile, x_TI, P), _splits(sizes, tile, x_TI, Q)
    gradients_into(x_TI, P, Q, dy_TO, dP_S, dQ_S, tile)
    return dP_S.sum(0), dQ_S.sum(0)


def gradients_into(
    x_TI: Tensor, P: Tensor, Q: Tensor, dy_TO: Tensor, dP_S: Tensor | None, dQ_S: Tensor, tile: Tile
) -> None:
    """Write what each split of the tokens adds to dQ, and to dP if there is a buffer for it."""
    sizes = sizes_of(P, Q)
    x_TI, dy_TO, P, Q = _rows(x_TI), _rows(dy_TO), P.contiguous(), Q.contiguous()
    num_tiles = triton.cdiv(sizes.phi, tile.phi) * triton.cdiv(sizes.gamma, tile.gamma)
    tokens_per_split = triton.cdiv(triton.cdiv(len(x_TI), tile.tokens), len(dQ_S)) * tile.tokens
    with _device_of(x_TI):
        kernels.gradients_kernel[(num_tiles, len(dQ_S))](
            x_TI,
            P,
            Q,
            dy_TO,
            dQ_S if dP_S is None else dP_S,
            dQ_S,
            len(x_TI),
            tokens_per_split,
            x_TI.stride(0),
            dy_TO.stride(0),
            **constants(sizes, tile),
            WITH_DP=dP_S is not None,
            **_how(tile, x_TI.dtype),
        )


def sizes_of(P: Tensor, Q: Tensor) -> Sizes:
    """The axes of both factors."""
    gamma, phi, rho, i = P.shape
    return Sizes(gamma=gamma, i=i, phi=phi, rho=rho, o=Q.shape[3])


def constants(sizes: Sizes, tile: Tile) -> dict[str, int]:
    """What a kernel is compiled for."""
    return {
        "G": sizes.gamma,
        "I": sizes.i,
        "F": sizes.phi,
        "R": sizes.rho,
        "O": sizes.o,
        "TILE_T": tile.tokens,
        "TILE_G": tile.gamma,
        "TILE_F": tile.phi,
        "TILE_R": tile.rho,
        "TILE_I": tile.i,
        "TILE_O": tile.o,
    }


def compiled_with(tile: Tile) -> dict[str, int | bool]:
    """The compiler's options."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def precision(dtype: torch.dtype) -> str:
    """Of products of float32, as torch is told for its own: exact unless TF32 is asked for."""
    asked = torch.backends.cuda.matmul.fp32_precision
    return "tf32" if dtype == torch.float32 and asked == "tf32" else "ieee"


def _how(tile: Tile, dtype: torch.dtype) -> Mapping[str, int | bool | str]:
    how: dict[str, int | bool | str] = {"PRECISION": precision(dtype), "IS_INTERPRETED": IS_INTERPRETED}
    return how if IS_INTERPRETED else how | compiled_with(tile)


def _tile(kernel: Kernel, sizes: Sizes, x_TI: Tensor) -> Tile:
    tile = choose_tile(kernel, sizes, x_TI.itemsize, len(x_TI))
    if tile is None:
        raise ValueError(f"expected sizes of which a tile fits on the chip, got {sizes} of {x_TI.dtype}")
    return tile


def _splits(sizes: Sizes, tile: Tile, x_TI: Tensor, factor: Tensor) -> Tensor:
    return x_TI.new_empty(num_splits(sizes, tile, len(x_TI)), *factor.shape, dtype=torch.float32)


def _rows(x_TI: Tensor) -> Tensor:
    """The same numbers; features of a token lie side by side, and tokens may lie anywhere."""
    return x_TI if x_TI.stride(1) == 1 else x_TI.contiguous()


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    # Triton launches on the current device, whatever the tensors' own.
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
