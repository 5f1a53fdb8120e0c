"""Axis sizes of the named families, by the numbers that their papers use instead of exponents."""

from dataclasses import replace

from einlayers.dims import Dims, check_size, resolve
from einlayers.theta import NAMED


def monarch_dims(d_in: int, d_out: int, num_blocks: int) -> Dims:
    """Monarch with ``num_blocks`` blocks in both factors: the block tensor-train whose rho fills the blocks.

    Parameters: ``(d_in + d_out) * min(d_in, d_out) / num_blocks`` where num_blocks squared divides the smaller width and
    num_blocks the other. Elsewhere the blocks are rounded up: the papers' layer skips some pairs of blocks there, ours
    joins every pair, so that the rank stays full. Source: 2204.00595, section 3.1.

    Raises:
        FieldError: a width or the number of blocks is not a positive whole number, or there are more blocks than features.
    """
    smaller = min(check_size("d_in", d_in), check_size("d_out", d_out))
    check_size("num_blocks", num_blocks, largest=smaller)
    block_in, block_out = -(-d_in // num_blocks), -(-d_out // num_blocks)
    rank = -(-min(block_in, block_out) // num_blocks)
    return Dims.of((block_in, 1, num_blocks, 1, block_out, num_blocks, rank), d_in, d_out)


def btt_dims(d_in: int, d_out: int, rank: int) -> Dims:
    """Block Tensor-Train of two cores, the widths split evenly (2406.06248, section 3); rank 1 is the named ``monarch``.

    Raises:
        FieldError: a width or the rank is not a positive whole number.
    """
    check_size("rank", rank)
    return replace(resolve(NAMED["monarch"], d_in, d_out), rho=rank)


def low_rank_dims(d_in: int, d_out: int, rank: int) -> Dims:
    """Two thin matrices with ``rank`` features between them.

    Raises:
        FieldError: a width or the rank is not a positive whole number.
    """
    return Dims.of((d_in, 1, 1, 1, d_out, 1, check_size("rank", rank)), d_in, d_out)
