"""Whether the model that chooses tiles is right, on a GPU: the tiles that it ranks first, timed.

    python -m benchmarks.gpu_tiles
    python -m benchmarks.gpu_tiles --widths 4096 --ranks 1 --most 12

bfloat16, the kernels alone, without packing or torch. A model that is right has its first tile among the fastest and its
times near those of the clock; where it is not, the assumed rates of ``einlayers.fused.tiles`` are what to change.
"""

# T tokens, O outputs

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_kernels import RANKS, WIDTHS, btt
from benchmarks.gpu_timing import beyond_cache, medians, require_gpu
from benchmarks.proxies.tables import table
from einlayers.fused.sizes import Sizes
from einlayers.fused.tiles import Kernel, Tile, num_splits, ranked_tiles, seconds_per_token

COLUMNS = ["d", "rank", "kernel", "tokens x gamma x phi", "stages", "model, us", "measured, us", "of the fastest"]
KERNELS: tuple[Kernel, ...] = ("two_factor", "gradients")
TOKENS, MOST, ROUNDS = 65536, 6, 5


def measure(kernel: Kernel, sizes: Sizes, num_tokens: int, most: int) -> dict[Tile, float]:
    """Seconds of the first tiles, in their order."""
    P = torch.randn(sizes.gamma, sizes.phi, sizes.rho, sizes.i, device="cuda", dtype=torch.bfloat16)
    Q = torch.randn(sizes.phi, sizes.gamma, sizes.rho, sizes.o, device="cuda", dtype=torch.bfloat16)
    out_TO = torch.randn(num_tokens, sizes.outputs, device="cuda", dtype=torch.bfloat16)
    run = _two_factor if kernel == "two_factor" else _gradients
    tiles = ranked_tiles(kernel, sizes, 2, num_tokens)[:most]
    runs: dict[Tile, Callable[[Tensor], None]] = {tile: partial(run, P, Q, out_TO, tile) for tile in tiles}
    return medians(runs, beyond_cache(num_tokens, sizes.inputs), ROUNDS)


def rows(width: int, rank: int, kernel: Kernel, num_tokens: int, seconds: dict[Tile, float]) -> list[list[object]]:
    """Of the table."""
    return [
        [
            width,
            rank,
            kernel,
            f"{tile.tokens} x {tile.gamma} x {tile.phi}",
            tile.stages,
            f"{1e6 * num_tokens * seconds_per_token(kernel, btt(width, rank), tile, 2):.0f}",
            f"{1e6 * time:.0f}",
            f"{min(seconds.values()) / time:.2f}",
        ]
        for tile, time in seconds.items()
    ]


def _two_factor(P: Tensor, Q: Tensor, y_TO: Tensor, tile: Tile, x_TI: Tensor) -> None:
    from einlayers.fused import launch

    launch.two_factor_into(x_TI, P, Q, y_TO, tile)


def _gradients(P: Tensor, Q: Tensor, dy_TO: Tensor, tile: Tile, x_TI: Tensor) -> None:
    from einlayers.fused import launch

    splits = num_splits(launch.sizes_of(P, Q), tile, len(x_TI))
    dP_S, dQ_S = (x_TI.new_empty(splits, *factor.shape, dtype=torch.float32) for factor in (P, Q))
    launch.gradients_into(x_TI, P, Q, dy_TO, dP_S, dQ_S, tile)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--most", type=int, default=MOST, help="tiles of each")
    asked = parser.parse_args()
    require_gpu("benchmarks.gpu_tiles")
    found = []
    for width in asked.widths:
        for rank in asked.ranks:
            for kernel in KERNELS:
                seconds = measure(kernel, btt(width, rank), asked.tokens, asked.most)
                found += rows(width, rank, kernel, asked.tokens, seconds)
    print(table(COLUMNS, found))


if __name__ == "__main__":
    main()
