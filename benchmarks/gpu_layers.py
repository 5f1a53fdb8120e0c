"""Whether the fused kernels are right and fast, on a GPU: the grid of docs/performance.md, in a few minutes.

    python -m benchmarks.gpu_layers                                   # checks, times, writes the table into the page
    python -m benchmarks.gpu_layers --widths 1024 --tokens 8192 --print

bfloat16. Every implementation is first compared with float64, and a deliberately wrong one has to fail. Then each is timed
by CUDA events, by turns, the median of the rounds; inputs rotate through more memory than the cache holds. What is timed is
what a layer does: eager calls, their launches included, except where compiled is said. ``dense`` is the faster of two
layouts of its weights. ``reference`` is the papers' formulation, two batched products with a permuted copy between them,
under torch.compile. ``torch`` is what our layers do without the kernels. ``fused`` and ``fused, compiled`` are the kernels.
"""

# T tokens, I inputs, O outputs; g i f r o as in ``einlayers.fused.sizes``

import argparse
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_kernels import RANKS, WIDTHS
from benchmarks.gpu_report import COLUMNS, TOKENS, Row, goals, with_section
from benchmarks.gpu_timing import beyond_cache, medians, require_gpu
from benchmarks.proxies.tables import table
from einlayers.contraction import fused, two_einsums
from einlayers.families import btt_dims

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

_ROUNDS = 9
_CHECKED_TOKENS, _TOLERANCE = 517, 1e-2
"""No multiple of a tile; and the relative error that bfloat16 may have."""

Apply = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """An implementation: the map, and its weights."""

    apply: Apply
    weights: tuple[Tensor, ...]


def reference(x_TI: Tensor, P_gin: Tensor, Q_fko: Tensor) -> Tensor:
    """The papers' formulation: ``n`` is (phi, rho), and ``k``, in which order it is copied, is (gamma, rho)."""
    (g, i, n), (f, k, o), T = P_gin.shape, Q_fko.shape, x_TI.shape[0]
    z_gTn = torch.bmm(x_TI.view(T, g, i).transpose(0, 1), P_gin)
    z_fTk = z_gTn.view(g, T, f, n // f).permute(2, 1, 0, 3).reshape(f, T, k)
    return torch.bmm(z_fTk, Q_fko).transpose(0, 1).reshape(T, f * o)


def layers(width: int, rank: int) -> dict[str, Layer]:
    """All implementations of one square block tensor-train, in bfloat16, and dense."""
    dims = btt_dims(width, width, rank)
    make = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    A = (make(dims.shape_A) / dims.alpha**0.5).requires_grad_()
    B = (make(dims.shape_B) / (dims.gamma * rank) ** 0.5).requires_grad_()
    P = A[:, 0].permute(2, 3, 0, 1).reshape(dims.gamma, dims.alpha, dims.phi * rank).detach().requires_grad_()
    Q = B[..., 0].permute(0, 3, 2, 1).reshape(dims.phi, dims.gamma * rank, dims.epsilon).detach().requires_grad_()
    W_OI = (make(width, width) / width**0.5).requires_grad_()
    W_IO = W_OI.detach().mT.contiguous().requires_grad_()
    apply = partial(fused, order="A_first")
    return {
        "dense": Layer(F.linear, (W_OI,)),
        "dense, transposed": Layer(torch.matmul, (W_IO,)),
        "reference": Layer(torch.compile(reference, dynamic=False), (P, Q)),
        "torch": Layer(partial(two_einsums, order="A_first"), (A, B)),
        "fused": Layer(apply, (A, B)),
        "fused, compiled": Layer(torch.compile(apply, dynamic=False), (A, B)),
    }


def check(width: int, rank: int, found: dict[str, Layer]) -> float:
    """The error of the kernels against float64, as a share of the norm: the largest of y and all gradients.

    Raises:
        RuntimeError: an implementation is wrong, or the check does not notice a wrong one.
    """
    x_TI = torch.randn(_CHECKED_TOKENS, width, device="cuda", dtype=torch.bfloat16)
    dy_TO = torch.randn_like(x_TI)
    A, B = (weight.detach() for weight in found["fused"].weights)
    exact = _results(lambda x, A, B: two_einsums(x, A, B, "A_first"), x_TI.double(), (A.double(), B.double()), dy_TO)
    errors = {}
    for name in ("torch", "fused"):
        results = _results(found[name].apply, x_TI, (A, B), dy_TO)
        errors[name] = max(map(_error, results, exact))
    # Not what was compiled of it, which would be compiled again for this number of tokens.
    errors["reference"] = _error(reference(x_TI, *found["reference"].weights), exact[0])
    for name, error in errors.items():
        if not error < _TOLERANCE:
            raise RuntimeError(f"{name} is wrong by {error:.1e} at width {width}, rank {rank}")
    gamma = A.shape[3]
    flipped_TI = x_TI.view(len(x_TI), gamma, -1).flip(1).flatten(1)
    if _error(found["fused"].apply(flipped_TI, A, B), exact[0]) < _TOLERANCE:
        raise RuntimeError("the check of results does not notice a wrong one")
    return errors["fused"]


def measure(width: int, rank: int, tokens: int, rounds: int) -> Row:
    """Check and time everything at one size."""
    torch.compiler.reset()
    found = layers(width, rank)
    error = check(width, rank, found)
    inputs = beyond_cache(tokens, width)
    dy_TO = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
    forward = {name: partial(_forward, layer) for name, layer in found.items()}
    training = {name: partial(_training, layer, dy_TO) for name, layer in found.items()}
    return Row(
        width=width,
        rank=rank,
        tokens=tokens,
        error=error,
        forward=_best_dense(medians(forward, inputs, rounds)),
        training=_best_dense(medians(training, inputs, rounds)),
    )


def _forward(layer: Layer, x_TI: Tensor) -> None:
    with torch.no_grad():
        layer.apply(x_TI, *layer.weights)


def _training(layer: Layer, dy_TO: Tensor, x_TI: Tensor) -> None:
    x_TI = x_TI.detach().requires_grad_()
    torch.autograd.grad(layer.apply(x_TI, *layer.weights), (x_TI, *layer.weights), dy_TO)


def _best_dense(seconds: dict[str, float]) -> dict[str, float]:
    """One time for dense: that of its faster layout."""
    dense = min(time for name, time in seconds.items() if name.startswith("dense"))
    return {"dense": dense} | {name: time for name, time in seconds.items() if not name.startswith("dense")}


def _results(apply: Apply, x_TI: Tensor, weights: tuple[Tensor, ...], dy_TO: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().requires_grad_() for tensor in (x_TI, *weights)]
    y_TO = apply(*leaves)
    return y_TO.detach(), *torch.autograd.grad(y_TO, leaves, dy_TO.to(y_TO.dtype))


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact).norm() / exact.norm())


def main() -> None:
    """Measure what was asked for; print it, and write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--print", action="store_true", help="leave the page as it is")
    asked = parser.parse_args()
    require_gpu("benchmarks.gpu_layers")
    rows = []
    for width in asked.widths:
        for rank in asked.ranks:
            for tokens in asked.tokens:
                rows.append(measure(width, rank, tokens, asked.rounds))
                print(f"| {' | '.join(rows[-1].cells())} |", flush=True)
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {datetime.date.today():%-d %B %Y}"
    section = f"Measured on {machine}.\n\n{table(COLUMNS, [row.cells() for row in rows])}\n\n{goals(rows)}"
    print(f"\n{section}")
    if not asked.print:
        PAGE.write_text(with_section(PAGE.read_text(), "layers", section))


if __name__ == "__main__":
    main()
