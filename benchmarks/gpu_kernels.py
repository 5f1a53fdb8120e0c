"""What the fused kernels need of a processor, by compiling them for Hopper; this needs no GPU.

    python -m benchmarks.gpu_kernels                        # the grid of docs/performance.md
    python -m benchmarks.gpu_kernels --widths 1024 --ranks 1 --dtypes bfloat16

For every layer the tiles that the kernels choose, how far they load ahead, the shared memory (of 227 KiB), the registers
of a thread (of 255) and the bytes that it spills, the instructions of tensor cores, and the bytes that a token takes between
the cache and the processors. The tiles of ``einlayers.fused.tiles`` were chosen by this table; nothing was ever timed.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.proxies.tables import table
from einlayers.families import btt_dims
from einlayers.fused.sizes import Sizes
from einlayers.fused.tiles import Kernel, Tile, choose_tile, traffic

WIDTHS, RANKS = (1024, 2048, 4096, 8192), (1, 4)
TOKENS = 65536
ITEMSIZES = {"bfloat16": 2, "float16": 2, "float32": 4}
_TYPES = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}

COLUMNS = ["d", "rank", "type", "kernel", "tokens x gamma x phi", "stages", "shared, KiB", "registers", "spilled"]
COLUMNS += ["tensor cores", "KiB a token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Of a compiled kernel: bytes of shared memory, registers of a thread, bytes it spills, instructions of tensor cores."""

    shared: int
    registers: int
    spilled: int
    mma: int


def btt(width: int, rank: int) -> Sizes:
    """The square block tensor-train of the benchmarks."""
    dims = btt_dims(width, width, rank)
    return Sizes(gamma=dims.gamma, i=dims.alpha, phi=dims.phi, rho=dims.rho, o=dims.epsilon)


def passes(sizes: Sizes, itemsize: int) -> Iterator[tuple[str, Kernel, Sizes, Tile]]:
    """The kernels of a training step, with their tiles."""
    for name, of in (("y", sizes), ("dx", sizes.transposed())):
        if tile := choose_tile("two_factor", of, itemsize, TOKENS):
            yield name, "two_factor", of, tile
    if tile := choose_tile("gradients", sizes, itemsize, TOKENS):
        yield "dP, dQ", "gradients", sizes, tile
        return
    for name, of in (("dQ", sizes), ("dP", sizes.transposed())):
        if tile := choose_tile("gradient", of, itemsize, TOKENS):
            yield name, "gradient", of, tile


def compile_kernel(kernel: Kernel, sizes: Sizes, tile: Tile, dtype: str, *, capability: int = 90) -> Needs:
    """Compile one kernel as a launch on a GPU of this capability would, with whole rows of 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from einlayers.fused import kernels
    from einlayers.fused.launch import compiled_with, constants

    function = kernels.two_factor_kernel if kernel == "two_factor" else kernels.gradients_kernel
    fixed = {**constants(sizes, tile), "PRECISION": "ieee", "IS_INTERPRETED": False}
    if kernel != "two_factor":
        fixed["WITH_DP"] = kernel == "gradients"

    def type_of(name: str) -> str:
        if name in fixed:
            return "constexpr"
        if not name.endswith("_ptr"):
            return "i32"
        return "*fp32" if name in ("dP_ptr", "dQ_ptr") else _TYPES[dtype]

    signature = {name: type_of(name) for name in function.arg_names}
    whole = [n for n, name in enumerate(function.arg_names) if name.endswith("_ptr") or name.startswith("stride")]
    source = ASTSource(function, signature, fixed, {(n,): [["tt.divisibility", 16]] for n in whole})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=compiled_with(tile))
    registers, spilled = _resources(Path(triton.__file__).parent, compiled.asm["cubin"])
    mma = compiled.asm["ptx"].count("mma.sync") + compiled.asm["ptx"].count("wgmma.mma_async")
    return Needs(shared=compiled.metadata.shared, registers=registers, spilled=spilled, mma=mma)


def _resources(triton_dir: Path, cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        dump = triton_dir / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([dump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return int(found[1]), int(found[2])


def rows(widths: list[int], ranks: list[int], dtypes: list[str]) -> Iterator[list[object]]:
    """The lines of the table, as they are compiled."""
    for dtype in dtypes:
        for width in widths:
            for rank in ranks:
                for name, kernel, sizes, tile in passes(btt(width, rank), ITEMSIZES[dtype]):
                    needs = compile_kernel(kernel, sizes, tile, dtype)
                    per_token = traffic(kernel, sizes, tile, ITEMSIZES[dtype]) / 1024
                    held = f"{tile.tokens} x {tile.gamma} x {tile.phi}"
                    cells = [width, rank, dtype, name, held, tile.stages, needs.shared // 1024, needs.registers]
                    yield [*cells, needs.spilled, needs.mma, f"{per_token:.0f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=ITEMSIZES)
    asked = parser.parse_args()
    print(table(COLUMNS, rows(asked.widths, asked.ranks, asked.dtypes)))


if __name__ == "__main__":
    main()
