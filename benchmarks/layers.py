"""How fast one structured layer is, forward and backward, against dense at its best and the formulations that are public.

    python -m benchmarks.layers                     # the grid of docs/benchmarks/layers.md
    python -m benchmarks.layers --widths 1024 --tokens 2048

One thread, thread CPU time, every implementation once a round in shuffled order, small ones several times in a row, medians.
A round in which dense ran below 85% of its best rate is discarded, because then the machine was busy with something else.
float32.

``dense`` is one matrix product by MKL, ``best dense`` the faster of that and oneDNN (precision "medium", where its error
stays that of float32). ``reference`` is the papers' formulation, written from its description: two batched products with
a permuted copy of the intermediate between them, which is saved; two einsums where the structure is not block
tensor-train. ``einsum`` is one torch.einsum of three operands. Efficiency is (FLOPs of ours / FLOPs of dense) / (time of
ours / time of dense): 1 is the rate of dense.

Two controls stand beside the figures. The same implementation runs twice under two names and must show a ratio near 1;
and an implementation with one axis exchanged must fail the check of results that all others pass.
"""

# T tokens, I inputs, O outputs; a b g d e f r: the sizes of alpha beta gamma delta epsilon phi rho

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import calm_medians, prepare
from einlayers.contraction import choose, contract
from einlayers.dims import Dims, resolve
from einlayers.families import btt_dims, low_rank_dims, monarch_dims
from einlayers.taxonomy import Order, cost
from einlayers.theta import NAMED, Theta

GENERAL = Theta.parse("(1/2|1/4|1/4|1/4|1/2|1/4|0)")

STRUCTURES: dict[str, Callable[[int], Dims]] = {
    "BTT rank 1": lambda d: btt_dims(d, d, 1),
    "BTT rank 4": lambda d: btt_dims(d, d, 4),
    "general": lambda d: resolve(GENERAL, d, d),
    "general, rho 1/4": lambda d: resolve(Theta.of([*GENERAL.exponents[:6], 0.25]), d, d),
    "Kronecker": lambda d: resolve(NAMED["kronecker"], d, d),
    "Tensor-Train": lambda d: resolve(NAMED["tensor-train"], d, d),
    "Monarch, 4 blocks": lambda d: monarch_dims(d, d, 4),
    "low rank, d/4": lambda d: low_rank_dims(d, d, d // 4),
}

WIDTHS = (128, 256, 512, 1024, 2048, 4096)
TOKENS = (256, 1024, 4096)
ROUNDS = 7
_TOLERANCE = 1e-4
"""Of the largest output: float32 sums in different orders."""

Apply = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x, A, B)`` to ``y``: ``(T, I)`` to ``(T, O)``."""


class PapersBTT(torch.autograd.Function):
    """The papers' formulation of block tensor-train; ``P`` is ``(g, a, f r)`` and ``Q`` is ``(f, g r, e)``."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, P: Tensor, Q: Tensor) -> Tensor:
        (g, a, fr), (f, _, e), T = P.shape, Q.shape, len(x_TI)
        z_Tgfr = x_TI.new_empty(T, g, fr)
        torch.bmm(x_TI.view(T, g, a).transpose(0, 1), P, out=z_Tgfr.transpose(0, 1))
        z_fTgr = z_Tgfr.view(T, g, f, fr // f).permute(2, 0, 1, 3).contiguous().flatten(2)
        y_Tfe = x_TI.new_empty(T, f, e)
        torch.bmm(z_fTgr, Q, out=y_Tfe.transpose(0, 1))
        ctx.save_for_backward(x_TI, P, Q, z_fTgr)
        return y_Tfe.flatten(1)

    @staticmethod
    def backward(ctx: Any, dy_TO: Tensor) -> tuple[Tensor, ...]:
        x_TI, P, Q, z_fTgr = ctx.saved_tensors
        (g, a, fr), (f, _, e), T = P.shape, Q.shape, len(x_TI)
        x_gTa, dy_fTe = x_TI.view(T, g, a).transpose(0, 1), dy_TO.reshape(T, f, e).transpose(0, 1)
        dQ = torch.bmm(z_fTgr.mT, dy_fTe)
        dz_fTgr = torch.bmm(dy_fTe, Q.mT)
        dz_gTfr = dz_fTgr.view(f, T, g, fr // f).permute(1, 2, 0, 3).contiguous().flatten(2).transpose(0, 1)
        dx_TI = torch.empty_like(x_TI)
        torch.bmm(dz_gTfr, P.mT, out=dx_TI.view(T, g, a).transpose(0, 1))
        return dx_TI, torch.bmm(x_gTa.mT, dz_gTfr), dQ


def papers_btt(x_TI: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """``PapersBTT`` with factors of our shapes; their layout is free of charge, as the papers store it."""
    y_TO: Tensor = PapersBTT.apply(x_TI, A, B)  # type: ignore[no-untyped-call]
    return y_TO


def papers_layout(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Our factors as the papers store them."""
    f, _, r, g, a = A.shape
    e = B.shape[1]
    P = A[:, 0].permute(2, 3, 0, 1).reshape(g, a, f * r)
    Q = B[..., 0].permute(0, 3, 2, 1).reshape(f, g * r, e)
    return P.detach().clone().requires_grad_(), Q.detach().clone().requires_grad_()


def papers_general(x_TI: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Two einsums, A first: the papers make no choice of order."""
    x_Tgba = x_TI.view(len(x_TI), A.shape[3], B.shape[4], A.shape[4])
    z_Tfdrgb = torch.einsum("tgba,fdrga->tfdrgb", x_Tgba, A)
    return torch.einsum("tfdrgb,fergb->tfed", z_Tfdrgb, B).flatten(1)


def papers(dims: Dims, A: Tensor, B: Tensor) -> tuple[Apply, tuple[Tensor, Tensor]]:
    """The papers' formulation of this structure, and the factors as it takes them."""
    is_btt = dims.beta == dims.delta == 1
    return (papers_btt, papers_layout(A, B)) if is_btt else (papers_general, (A, B))


def one_einsum(x_TI: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """All three operands at once; torch picks the path."""
    x_Tgba = x_TI.view(len(x_TI), A.shape[3], B.shape[4], A.shape[4])
    return torch.einsum("tgba,fdrga,fergb->tfed", x_Tgba, A, B).flatten(1)


def ours(order: Order, *, recompute: bool = False) -> Apply:
    """What ``EinsumLinear`` does."""
    return lambda x_TI, A, B: contract(x_TI, A, B, order=order, recompute=recompute)


def wrong(x_TI: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """The negative control: the blocks of the input in reverse."""
    return one_einsum(x_TI.view(len(x_TI), A.shape[3], -1).flip(1).flatten(1), A, B)


@dataclass(frozen=True, slots=True)
class Row:
    """One structure at one size: seconds of each implementation, and what the policy chose."""

    width: int
    tokens: int
    structure: str
    flops: float
    seconds: dict[str, float]
    formulation: str

    def ratio(self, name: str, to: str) -> float:
        return self.seconds[name] / self.seconds[to]

    def __str__(self) -> str:
        time_ratio = self.ratio("ours", "dense")
        reference = self.ratio("reference", "ours")
        return (
            f"| {self.width} | {self.tokens} | {self.structure} | {self.flops:.3f} | {time_ratio:.3f} "
            f"| {self.flops / time_ratio:.2f} | {self.flops / self.ratio('ours', 'best dense'):.2f} | {reference:.2f} "
            f"| {self.ratio('einsum', 'ours'):.2f} | {self.ratio('recomputed', 'ours'):.2f} | {self.formulation} |"
        )


COLUMNS = (
    "d",
    "tokens",
    "structure",
    "FLOPs / dense",
    "time / dense",
    "efficiency",
    "against best dense",
    "reference / ours",
    "einsum / ours",
    "recomputed / ours",
    "formulation",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def measure(width: int, tokens: int, names: list[str], rounds: int) -> list[Row]:
    """All structures and implementations of one size, interleaved."""
    x_TI, dy_TO = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
    W_OI = torch.randn(width, width, requires_grad=True)
    runs: dict[tuple[str, str], Callable[[], object]] = {
        ("", "dense"): lambda: _forward_backward(F.linear(x_TI, W_OI), (x_TI, W_OI), dy_TO),
        ("", "dense by oneDNN"): lambda: _at_medium_precision(x_TI, W_OI, dy_TO),
    }
    chosen = {}
    for name in names:
        dims = STRUCTURES[name](width)
        A, B = torch.randn(dims.shape_A, requires_grad=True), torch.randn(dims.shape_B, requires_grad=True)
        x, dy = _fitted(x_TI, dims.inputs), _fitted(dy_TO, dims.outputs).detach()
        chosen[name] = choose(x, A, B, cost(dims).order)
        for implementation, (apply, factors) in _implementations(dims, A, B).items():
            runs[name, implementation] = _run(apply, x, factors, dy)
    seconds = calm_medians(runs, ("", "dense"), rounds)
    best = min(seconds["", "dense"], seconds["", "dense by oneDNN"])
    return [
        Row(
            width=width,
            tokens=tokens,
            structure=name,
            flops=cost(STRUCTURES[name](width)).macs / width**2,
            seconds={
                "dense": seconds["", "dense"],
                "best dense": best,
                **{implementation: t for (structure, implementation), t in seconds.items() if structure == name},
            },
            formulation=chosen[name],
        )
        for name in names
    ]


def _implementations(dims: Dims, A: Tensor, B: Tensor) -> dict[str, tuple[Apply, tuple[Tensor, Tensor]]]:
    order = cost(dims).order
    reference = papers(dims, A, B)
    implementations: dict[str, tuple[Apply, tuple[Tensor, Tensor]]] = {
        "reference": reference,
        "reference again": reference,
        "einsum": (one_einsum, (A, B)),
        "ours": (ours(order), (A, B)),
        "recomputed": (ours(order, recompute=True), (A, B)),
    }
    _check(dims, A, B, {name: (apply, factors) for name, (apply, factors) in implementations.items()})
    return implementations


def _check(dims: Dims, A: Tensor, B: Tensor, implementations: dict[str, tuple[Apply, tuple[Tensor, Tensor]]]) -> None:
    """Every implementation gives one result, in float32, and the negative control does not."""
    with torch.no_grad():
        x_TI = torch.randn(8, dims.inputs)
        expected = one_einsum(x_TI.double(), A.double(), B.double())
        scale = expected.abs().max()
        for name, (apply, factors) in implementations.items():
            error = ((apply(x_TI, *factors) - expected).abs().max() / scale).item()
            if not error < _TOLERANCE:
                raise RuntimeError(f"{name} is wrong by {error:.1e} at {dims}")
        if dims.gamma > 1 and (wrong(x_TI, A, B) - expected).abs().max() / scale < _TOLERANCE:
            raise RuntimeError(f"the check of results does not notice a wrong one at {dims}")


def _run(apply: Apply, x: Tensor, factors: tuple[Tensor, Tensor], dy: Tensor) -> Callable[[], object]:
    return lambda: _forward_backward(apply(x, *factors), (x, *factors), dy)


def _forward_backward(y: Tensor, inputs: tuple[Tensor, ...], dy: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, dy)


def _at_medium_precision(x_TI: Tensor, W_OI: Tensor, dy_TO: Tensor) -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        _forward_backward(F.linear(x_TI, W_OI), (x_TI, W_OI), dy_TO)
    finally:
        torch.set_float32_matmul_precision("highest")


def _fitted(x: Tensor, size: int) -> Tensor:
    return F.pad(x.detach(), (0, size - x.shape[1])).requires_grad_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--structures", nargs="+", default=list(STRUCTURES), choices=list(STRUCTURES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    prepare("benchmarks.layers")
    print(HEADER, flush=True)
    rows = []
    for width in arguments.widths:
        for tokens in arguments.tokens:
            for row in measure(width, tokens, arguments.structures, arguments.rounds):
                print(row, flush=True)
                rows.append(row)
    _summary(rows)


def _summary(rows: list[Row]) -> None:
    control = [row.ratio("reference again", "reference") for row in rows]
    print(f"\nthe same implementation under two names: {min(control):.2f} to {max(control):.2f}")
    slower = [row for row in rows if row.ratio("reference", "ours") < 0.95]
    print(f"ours is more than 5% slower than the reference in {len(slower)} of {len(rows)} rows")
    for structure in dict.fromkeys(row.structure for row in rows):
        ratios = [row.ratio("reference", "ours") for row in rows if row.structure == structure]
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(f"{structure}: reference / ours {min(ratios):.2f} to {max(ratios):.2f}, geometric mean {mean:.2f}")


if __name__ == "__main__":
    main()
