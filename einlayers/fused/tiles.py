"""How much of a layer one program of the kernels holds: what fits on the chip and should take the least time.

Both kernels hold their sums in registers and what they multiply in shared memory. Each tile of phi reads all of x again and
each tile of tokens reads all weights again, mostly from the cache. The bytes that this takes are counted here; at large
widths they, and no longer the memory, are what bounds a pass.
"""

# T tokens; G gamma, F phi, R rho; I, O features of a block of x and of y, as in ``einlayers.fused.kernels``.

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

from einlayers.fused.sizes import H200_BYTES, H200_CACHE_BYTES, H200_FLOPS, Sizes, forward_floor

MOST_SHARED = 227 * 1024
"""Bytes of shared memory that a program may have on Hopper."""

MULTIPROCESSORS = 132
"""Of an H200. A constant rather than the device's own number, so that sums are the same on every device."""

_LEAST = 16
"""The smallest side of a product that tensor cores take without waste, and the smallest inner side that Triton takes."""

_TOKENS = (16, 32, 64, 128)

_RATES = {2: 400e12, 4: 30e12}
"""FLOPs a second of products so small, by bytes of a number; and"""

_WAIT = 1e-6
"""the seconds from asking the cache to having it all, beside what the transfer takes. Assumptions, all three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registers:
    """How many float32 numbers a program of eight warps holds without spilling: its sums, and one intermediate."""

    sums: int
    intermediate: int


Kernel = Literal["two_factor", "gradient", "gradients"]
"""Of y (or of dx), of dQ (or of dP), of both."""

_REGISTERS: dict[tuple[Kernel, int], _Registers] = {
    ("two_factor", 2): _Registers(sums=32768, intermediate=16384),
    ("gradient", 2): _Registers(sums=32768, intermediate=8192),
    ("gradients", 2): _Registers(sums=32768, intermediate=8192),
    ("two_factor", 4): _Registers(sums=8192, intermediate=2048),
    ("gradient", 4): _Registers(sums=8192, intermediate=2048),
    ("gradients", 4): _Registers(sums=8192, intermediate=1024),
}
"""By kernel and bytes of a number; float32 has no tensor cores. Found by compiling: ``benchmarks/gpu_kernels.py``."""


_WIDEST = 32
"""Across phi and rho, of what the first product of y makes: beyond it, Triton 3.7 spilled 272 bytes of a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Tokens, gamma and phi that a program holds at once, with the padded rank and features, and how it is compiled."""

    tokens: int
    gamma: int
    phi: int
    rho: int
    i: int
    o: int
    stages: int
    warps: int = 8

    @property
    def intermediate(self) -> int:
        """Numbers between the factors."""
        return self.tokens * self.gamma * self.phi * self.rho


def choose_tile(kernel: Kernel, sizes: Sizes, itemsize: int, num_tokens: int) -> Tile | None:
    """The tile by which these sizes should take the least time; None where none fits."""
    # An expert has another number of tokens each time, and a search takes milliseconds.
    return _choose_tile(kernel, sizes, itemsize, min(_padded(num_tokens), _TOKENS[-1]))


@lru_cache(maxsize=4096)
def _choose_tile(kernel: Kernel, sizes: Sizes, itemsize: int, num_tokens: int) -> Tile | None:
    return next(iter(ranked_tiles(kernel, sizes, itemsize, num_tokens)), None)


def ranked_tiles(kernel: Kernel, sizes: Sizes, itemsize: int, num_tokens: int) -> list[Tile]:
    """All tiles that fit, the one that should be fastest first."""

    def rank(tile: Tile) -> tuple[float, float, int]:
        # Of equals the one that moves less, and then the one with more tokens, whose products are larger.
        seconds, moved = (cost(kernel, sizes, tile, itemsize) for cost in (seconds_per_token, traffic))
        return seconds, moved, -tile.tokens

    return sorted((tile for tile in _tiles(kernel, sizes, num_tokens) if _fits(kernel, tile, itemsize)), key=rank)


def seconds_per_token(kernel: Kernel, sizes: Sizes, tile: Tile, itemsize: int) -> float:
    """What a token should take of an H200, by the bytes from the cache and the products, padding included. A model."""
    num_tiles = -(-sizes.gamma // tile.gamma) * -(-sizes.phi // tile.phi)
    products = 2 if kernel == "gradients" else 1
    flops = 2 * products * num_tiles * tile.intermediate // tile.tokens * (tile.i + tile.o)
    loading, multiplying = traffic(kernel, sizes, tile, itemsize) / H200_CACHE_BYTES, flops / _RATES[itemsize]
    if tile.stages > 2:
        return max(loading, multiplying)
    # With one buffer Triton asks for what comes next when it has used what came before, and then waits for it.
    return loading + multiplying + _WAIT * num_tiles / tile.tokens / MULTIPROCESSORS


def traffic(kernel: Kernel, sizes: Sizes, tile: Tile, itemsize: int) -> float:
    """Bytes per token between the cache and the processors, the output's included."""
    reads_of_x = -(-sizes.phi // tile.phi)
    if kernel == "two_factor":
        return itemsize * (sizes.inputs * reads_of_x + sizes.outputs + sizes.weights / tile.tokens)
    return itemsize * (sizes.inputs * reads_of_x + sizes.outputs * -(-sizes.gamma // tile.gamma))


def shared_bytes(kernel: Kernel, tile: Tile, itemsize: int) -> int:
    """Of the buffers of what is loaded ahead, and of what changes its layout on the way."""
    x = tile.gamma * tile.tokens * tile.i
    P = tile.gamma * tile.phi * tile.rho * tile.i
    Q = tile.phi * tile.gamma * tile.rho * tile.o
    dy = tile.phi * tile.tokens * tile.o
    buffers = tile.stages - 1
    if kernel == "two_factor":
        numbers = buffers * (x + P + Q)
    else:
        numbers = buffers * (x + dy) + P + (Q if kernel == "gradients" else 0)
    return itemsize * (numbers + tile.intermediate)


def num_splits(sizes: Sizes, tile: Tile, num_tokens: int) -> int:
    """Into how many runs the tokens are split for the weight gradients, so that every processor has work."""
    num_programs = -(-sizes.phi // tile.phi) * -(-sizes.gamma // tile.gamma)
    return max(1, min(MULTIPROCESSORS // num_programs, -(-num_tokens // tile.tokens)))


def expected_seconds(sizes: Sizes, num_tokens: int, itemsize: int = 2) -> float:
    """What y should take on an H200: its floor, or what its tile takes. A model; nothing was timed."""
    floor = forward_floor(sizes, num_tokens, itemsize).seconds
    return max(floor, _model_seconds("two_factor", sizes, num_tokens, itemsize))


def expected_training_seconds(sizes: Sizes, num_tokens: int, itemsize: int = 2) -> float:
    """What y, dx and the gradients of both factors should take, one after the other."""
    floor = forward_floor(sizes, num_tokens, itemsize)
    gradients = min(
        _model_seconds("gradients", sizes, num_tokens, itemsize),
        sum(_model_seconds("gradient", way, num_tokens, itemsize) for way in (sizes, sizes.transposed())),
    )
    both_ways = sum(expected_seconds(way, num_tokens, itemsize) for way in (sizes, sizes.transposed()))
    return both_ways + max(floor.seconds, gradients)


def unfused_seconds(sizes: Sizes, num_tokens: int, itemsize: int = 2) -> float:
    """What two products with a permuted copy between them take at least: five passes over memory."""
    moved = itemsize * num_tokens * (sizes.inputs + sizes.outputs + 4 * sizes.intermediate)
    return max(moved / H200_BYTES, 2 * num_tokens * sizes.weights / H200_FLOPS)


def _model_seconds(kernel: Kernel, sizes: Sizes, num_tokens: int, itemsize: int) -> float:
    tile = choose_tile(kernel, sizes, itemsize, num_tokens)
    if tile is None:
        return float("inf")
    return num_tokens * seconds_per_token(kernel, sizes, tile, itemsize)


def _tiles(kernel: Kernel, sizes: Sizes, num_tokens: int) -> Iterator[Tile]:
    rho = _padded(sizes.rho)
    least = max(1, _LEAST // rho)
    gammas = [least] if kernel == "two_factor" else _powers(least, sizes.gamma)
    phis = _powers(least if kernel == "gradients" else max(1, least // 2), sizes.phi)
    lengths = [size for size in _TOKENS if size <= max(_LEAST, _padded(num_tokens))]
    i, o = max(_LEAST, _padded(sizes.i)), max(_LEAST, _padded(sizes.o))
    for tokens, gamma, phi, stages in product(lengths, gammas, phis, (2, 3)):
        yield Tile(tokens=tokens, gamma=gamma, phi=phi, rho=rho, i=i, o=o, stages=stages)


def _fits(kernel: Kernel, tile: Tile, itemsize: int) -> bool:
    registers = _REGISTERS[kernel, itemsize]
    if kernel == "two_factor" and tile.phi > 1 and tile.phi * tile.rho > _WIDEST:
        return False
    sums = tile.phi * tile.tokens * tile.o
    if kernel != "two_factor":
        sums = tile.phi * tile.gamma * tile.rho * (tile.o if kernel == "gradient" else tile.i + tile.o)
    return (
        sums <= registers.sums
        and tile.intermediate <= registers.intermediate
        and shared_bytes(kernel, tile, itemsize) <= MOST_SHARED
    )


def _powers(least: int, size: int) -> list[int]:
    """The powers of two from ``least`` to where the size is covered."""
    powers = [least]
    while powers[-1] < size:
        powers.append(2 * powers[-1])
    return powers


def _padded(size: int) -> int:
    return 1 << (size - 1).bit_length() if size > 1 else 1
