"""Whether muP holds for structured layers: coordinate checks over widths and depths, and where the best learning rate lies.

    python -m benchmarks.mup coordinates [--optimizer sgd]
    python -m benchmarks.mup depth
    python -m benchmarks.mup rates [--structures "BTT rank 1" ...]

Flat means that over all sizes the largest mean over seeds is at most 1.2 times the smallest. The tables are those of
docs/benchmarks/mup.md. Each check stands beside a control that has to fail it.
"""

# B batch, X inputs of the task, D width

import argparse
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.attention import LinearFactory
from einlayers.btt import BTTLinear, btt_layer
from einlayers.coordinates import Coordinates, coordinate_check, spread
from einlayers.linear import EinsumLinear
from einlayers.muon import Group
from einlayers.optim import param_groups
from einlayers.scaling import branch_scale
from einlayers.theta import Theta
from search.proxies.char_lm import CHAR_VOCABULARY, CharLM
from workers.models.gpt import GPT
from workers.models.layers import Layers
from workers.models.linears import dense_linear, linear_factory
from workers.proxies.char_lm import CharLMProxy
from workers.workspace import Workspace

FLAT = 1.2
"""The largest over the smallest value, over sizes, that still counts as flat."""

WIDTHS = (64, 128, 256, 512, 1024)
DEPTHS = (3, 6, 12, 24)
BASE_WIDTH, BASE_DEPTH = 64, 3
EVEN_WIDTHS = (64, 256, 1024)
"""Widths with a whole square root: the axes of a split in two halves are equal, and no rounding shows in the scales."""
MIXED_WIDTHS = (96, 192, 384, 768)
"""Three times a power of 2."""
PRIME_WIDTHS = (67, 131, 257, 521, 1031)
"""Structured layers have to pad, and to split into unequal axes."""

ADAM_LR, SGD_LR = 2e-3, 3e-2
"""Of the coordinate checks; small enough that moves are proportional to them."""
PROPOSED_LR = 5e-4
"""Of the check of ``shared``, whose rates are larger."""
BETAS = (0.9, 0.95)

Rule = Literal["muP", "one rate", "shared", "published"]
"""``muP``: the library's. ``one rate``: the same for all parameters. The other two change the rate of each factor.

``shared``: Adam's is multiplied by the root of the number of positions within one input at which its matrices are applied.
``published``: SGD's follows the fans of one block, as in the papers, not all outputs. See docs/benchmarks/mup.md for why.
"""


def low_rank(rank: Callable[[int], int]) -> LinearFactory:
    """Low-rank layers; ``rank`` is given the smaller width."""

    def make(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
        return EinsumLinear.low_rank(d_in, d_out, rank=rank(min(d_in, d_out)), bias=False, zero_init=zero_init)

    return make


def monarch(num_blocks: int) -> LinearFactory:
    """Monarch layers by the number of blocks."""

    def make(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
        return EinsumLinear.monarch(d_in, d_out, num_blocks=num_blocks, bias=False, zero_init=zero_init)

    return make


def btt(rank: int, num_cores: int = 2) -> LinearFactory:
    """Block Tensor-Train layers by rank and number of cores."""

    def make(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
        return btt_layer(d_in, d_out, num_cores=num_cores, rank=rank, bias=False, zero_init=zero_init)

    return make


def einsum(theta: str) -> LinearFactory:
    """Layers of a point of the space."""
    return linear_factory(Theta.parse(theta))


FLAT_STRUCTURES: dict[str, LinearFactory] = {
    "dense": dense_linear,
    "low rank d/4": low_rank(lambda d: d // 4),
    "BTT rank 1": btt(1),
    "BTT rank 4": btt(4),
    "BTT of 3 cores": btt(1, num_cores=3),
    "BTT of 3 cores, rank 2": btt(2, num_cores=3),
    "Monarch, 2 blocks": monarch(2),
    "Monarch, 4 blocks": monarch(4),
    "Monarch, 8 blocks": monarch(8),
}
"""Structures whose factors keep their proportions as they widen."""

SMALL_STRUCTURES: dict[str, LinearFactory] = {"BTT of 4 cores": btt(1, num_cores=4)}
"""Structures whose blocks are so small at width 64 (2 to 4 features) that their proportions there are not those of 1024."""

SHARED_STRUCTURES: dict[str, LinearFactory] = {
    "Kronecker": einsum("kronecker"),
    "general": einsum("(1/2|1/4|1/4|1/4|1/2|1/4|0)"),
}
"""Structures with beta or delta: the same matrix is applied at more and more positions of one input."""

NARROWING_STRUCTURES: dict[str, LinearFactory] = {
    "low rank sqrt(d)": low_rank(lambda d: round(math.sqrt(d))),
    "BTT, rho 1/4": einsum("btt"),
    "Tensor-Train": einsum("tensor-train"),
}
"""Structures whose last factor maps ever more features to one: what it starts with is ever smaller."""

STRUCTURES = FLAT_STRUCTURES | SMALL_STRUCTURES | SHARED_STRUCTURES | NARROWING_STRUCTURES


DEPTH_STRUCTURES = (
    "dense",
    "BTT rank 1",
    "BTT of 3 cores",
    "Monarch, 4 blocks",
    "low rank d/4",
    "Kronecker",
    "general",
)


class Block(nn.Module):
    """A pre-norm residual branch of two layers, as the feed-forward part of a transformer."""

    def __init__(self, width: int, expansion: int, linear: LinearFactory, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.up = linear(width, expansion * width)
        self.down = linear(expansion * width, width)
        self.scale = scale

    def forward(self, x_BD: Tensor) -> Tensor:
        """Map ``(B, D)`` to the same shape."""
        update_BD: Tensor = self.down(F.gelu(self.up(self.norm(x_BD))))
        return x_BD + self.scale * update_BD


class Stack(nn.ModuleList):
    """Blocks one after the other, as one module, so that what leaves the last has the same name at every depth."""

    def forward(self, x_BD: Tensor) -> Tensor:
        """Map ``(B, D)`` to the same shape."""
        for block in self:
            x_BD = block(x_BD)
        return x_BD


class ResidualMLP(nn.Module):
    """A dense input layer, blocks, and a dense head that starts as zero; ``scale`` multiplies every branch."""

    def __init__(
        self, width: int, linear: LinearFactory, *, depth: int = 2, expansion: int = 1, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.input = dense_linear(NUM_INPUTS, width)
        self.blocks = Stack(Block(width, expansion, linear, scale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = dense_linear(width, 1, zero_init=True)

    def forward(self, x_BX: Tensor) -> Tensor:
        """Map ``(B, X)`` to ``(B, 1)``."""
        y_B1: Tensor = self.head(self.norm(self.blocks(self.input(x_BX))))
        return y_B1


NUM_INPUTS, BATCH_SIZE = 8, 16
WATCHED = ("blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "blocks")
"""Every structured layer of two blocks, and the residual stream behind them."""


def loss(model: nn.Module) -> Tensor:
    """The mean squared error on 16 inputs of 8 normal numbers, whose targets are the sine of a random projection."""
    generator = torch.Generator().manual_seed(0)
    x_BX = torch.randn(BATCH_SIZE, NUM_INPUTS, generator=generator)
    target_B1 = torch.sin(x_BX @ torch.randn(NUM_INPUTS, 1, generator=generator))
    return F.mse_loss(model(x_BX), target_B1)


def check_widths(
    linear: LinearFactory,
    *,
    widths: Sequence[int] = WIDTHS,
    expansion: int = 1,
    rule: Rule = "muP",
    optimizer: Literal["adam", "sgd"] = "adam",
    lr: float | None = None,
    seeds: Iterable[int] = range(8),
) -> dict[str, Coordinates]:
    """The coordinate check of one structure in all layers of two blocks; ``expansion`` 4 is a transformer's."""
    with torch.device("meta"):
        base = ResidualMLP(BASE_WIDTH, dense_linear, expansion=expansion)
    if lr is None:
        lr = ADAM_LR if optimizer == "adam" else SGD_LR

    def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
        groups = apply_rule(rule, model, param_groups(model, lr, base=base, optimizer=optimizer), lr)
        return torch.optim.Adam(groups, betas=BETAS) if optimizer == "adam" else torch.optim.SGD(groups)

    return coordinate_check(
        lambda width: ResidualMLP(width, linear, expansion=expansion),
        widths,
        names=WATCHED,
        loss=loss,
        optimizer=make_optimizer,
        seeds=tuple(seeds),
    )


def check_depths(
    linear: LinearFactory,
    *,
    width: int = BASE_WIDTH,
    depths: Sequence[int] = DEPTHS,
    scale_branches: bool = True,
    scale_rates: bool = True,
    lr: float = ADAM_LR,
    seeds: Iterable[int] = range(8),
) -> Coordinates:
    """The coordinates of the residual stream behind the last block, over depths; the rule is on only if both scales are."""
    with torch.device("meta"):
        base = ResidualMLP(BASE_WIDTH, dense_linear, depth=BASE_DEPTH)

    def build(depth: int) -> nn.Module:
        scale = branch_scale(depth, BASE_DEPTH) if scale_branches else 1.0
        return ResidualMLP(width, linear, depth=depth, scale=scale)

    def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
        groups = param_groups(model, lr, base=base, optimizer="adam", depth_rule=scale_rates)
        return torch.optim.Adam(groups, betas=BETAS)

    name = "blocks"
    return coordinate_check(build, depths, names=[name], loss=loss, optimizer=make_optimizer, seeds=tuple(seeds))[name]


def apply_rule(rule: Rule, model: nn.Module, groups: list[Group], lr: float) -> list[Group]:
    """The groups with the library's rates replaced or multiplied as ``rule`` says."""
    if rule == "muP":
        return groups
    if rule == "one rate":
        return [{"params": list(model.parameters()), "lr": lr}]
    factors = {
        parameter: math.sqrt(repeats) if rule == "shared" else 1 / (repeats * matrices)
        for module in model.modules()
        for parameter, matrices, repeats in applications(module)
    }
    return [
        {"params": [parameter], "lr": group["lr"] * factors.get(parameter, 1.0)}
        for group in groups
        for parameter in group["params"]
    ]


def applications(module: nn.Module) -> list[tuple[nn.Parameter, int, int]]:
    """Each factor, the number of its matrices, and at how many positions of one input each matrix is applied."""
    if isinstance(module, EinsumLinear):
        dims = module.dims
        return [(module.A, dims.gamma, dims.beta), (module.B, dims.phi, dims.delta)]
    if isinstance(module, BTTLinear):
        cores = zip(module.cores, module.axes.cores, strict=True)
        return [(parameter, core.done * core.ahead, 1) for parameter, core in cores]
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A structure and a rule, whose best rate is looked for at two widths."""

    linear: LinearFactory
    rule: Rule = "muP"
    vector_lr: float | None = None
    """Of embeddings and gains, if the rates of matrices alone are swept; None: in proportion to these."""


RATES = tuple(5e-4 * 2**k for k in range(7))
RATE_WIDTHS = (64, 512)
NUM_STEPS, WARMUP_STEPS = 200, 20
CONTEXT, DEPTH, NUM_HEADS = 64, 2, 4

SWEEPS = {
    "dense": Sweep(linear=STRUCTURES["dense"]),
    "BTT rank 1": Sweep(linear=STRUCTURES["BTT rank 1"]),
    "low rank d/4": Sweep(linear=STRUCTURES["low rank d/4"]),
    "Kronecker": Sweep(linear=STRUCTURES["Kronecker"]),
    "general": Sweep(linear=STRUCTURES["general"]),
    "Kronecker, shared": Sweep(linear=STRUCTURES["Kronecker"], rule="shared"),
    "BTT rank 1, matrices": Sweep(linear=STRUCTURES["BTT rank 1"], vector_lr=0.01),
    "BTT rank 1, one rate": Sweep(linear=STRUCTURES["BTT rank 1"], rule="one rate"),
}


def gpt_loss(sweep: Sweep, width: int, lr: float, seed: int, workspace: Workspace) -> float:
    """The mean training loss, nats per character, of the last quarter of the steps; every step has text not seen before.

    The text of a seed is the same for every structure, width and rate.
    """

    def gpt(width: int, linear: LinearFactory) -> GPT:
        return GPT(
            vocabulary=len(CHAR_VOCABULARY),
            context=CONTEXT,
            width=width,
            depth=DEPTH,
            num_heads=NUM_HEADS,
            layers=Layers(linear=linear),
        )

    with torch.device("meta"):
        base = gpt(BASE_WIDTH, dense_linear)
    torch.manual_seed(seed)
    model = gpt(width, sweep.linear)
    input_lr_mult = CharLM().input_lr_mult if sweep.vector_lr is None else sweep.vector_lr / lr
    groups = param_groups(model, lr, base=base, optimizer="adam", input_lr_mult=input_lr_mult)
    optimizer = torch.optim.Adam(apply_rule(sweep.rule, model, groups, lr), betas=BETAS, fused=True)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))
    task = CharLMProxy(CharLM(context=CONTEXT)).task(seed, workspace, torch.device("cpu"))
    losses = []
    for batch in islice(task.batches, NUM_STEPS):
        optimizer.zero_grad()
        value = task.loss(model, batch)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimizer.step()
        warmup.step()
        losses.append(value.item())
    return statistics.fmean(losses[-NUM_STEPS // 4 :])


def optimum(losses: dict[float, float]) -> float:
    """The lowest point of the parabola, in log rate, through the best rate and its neighbours; at a border, the best."""
    rates = sorted(losses)
    best = min(range(len(rates)), key=lambda i: losses[rates[i]])
    if best in (0, len(rates) - 1):
        return rates[best]
    left, middle, right = (losses[rates[i]] for i in (best - 1, best, best + 1))
    return rates[best] * 2 ** ((left - right) / (left - 2 * middle + right) / 2)


def print_rates(names: Sequence[str], seeds: Sequence[int]) -> None:
    """Sweep the rate for each name, and print a line for each width."""
    print("| structure | width | " + " | ".join(f"{rate:g}" for rate in RATES) + " | optimum |")
    print("| --- | --- |" + " --- |" * (len(RATES) + 1))
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(cache_dir=Path(folder))
        for name in names:
            for width in RATE_WIDTHS:
                losses = {
                    lr: statistics.fmean(gpt_loss(SWEEPS[name], width, lr, seed, workspace) for seed in seeds)
                    for lr in RATES
                }
                cells = " | ".join(f"{value:.3f}" for value in losses.values())
                print(f"| {name} | {width} | {cells} | {optimum(losses):.2g} |", flush=True)


def print_coordinates(checks: dict[str, dict[str, Coordinates]]) -> None:
    """Two lines for each check: the residual stream by width, and the spread of whichever watched module has the largest."""
    widths = list(next(iter(checks.values()))["blocks"].features)
    print("| structure | of | " + " | ".join(map(str, widths)) + " | max/min | worst of all |")
    print("| --- | --- |" + " --- |" * (len(widths) + 2))
    for label, found in checks.items():
        stream = found["blocks"]
        for kind, by_width in (("features", stream.features), ("updates", stream.updates)):
            worst = max(spread(getattr(coordinates, kind)) for coordinates in found.values())
            cells = " | ".join(f"{value:.3g}" for value in by_width.values())
            print(f"| {label} | {kind} | {cells} | {spread(by_width):.2f} | {worst:.2f} |", flush=True)


def width_checks(optimizer: Literal["adam", "sgd"], num_seeds: int) -> dict[str, dict[str, Coordinates]]:
    """Every structure by the library's rule, those it does not fit by the rule that would, and the controls."""
    seeds = range(num_seeds)
    proposed: Rule = "shared" if optimizer == "adam" else "published"
    checks = {name: check_widths(linear, optimizer=optimizer, seeds=seeds) for name, linear in STRUCTURES.items()}
    for name in ("dense", "BTT rank 1", "low rank d/4"):
        checks[f"{name}, d to 4d to d"] = check_widths(
            STRUCTURES[name], expansion=4, optimizer=optimizer, seeds=range(num_seeds // 2)
        )
    others = list(SHARED_STRUCTURES if optimizer == "adam" else STRUCTURES)
    for name in others:
        lr = PROPOSED_LR if optimizer == "adam" else SGD_LR
        checks[f"{name}, {proposed}"] = check_widths(
            STRUCTURES[name], rule=proposed, optimizer=optimizer, lr=lr, seeds=seeds
        )
    for name in ("dense", "BTT rank 1"):
        checks[f"{name}, one rate"] = check_widths(
            STRUCTURES[name], rule="one rate", optimizer=optimizer, seeds=range(num_seeds // 4)
        )
    return checks


def print_depths(names: Sequence[str], num_seeds: int) -> None:
    """A line for each structure and half of the rule: the change of the residual stream by depth."""
    print("| structure | branches | rates | " + " | ".join(map(str, DEPTHS)) + " | max/min | features max/min |")
    print("| --- | --- | --- |" + " --- |" * (len(DEPTHS) + 2))
    for name in names:
        for branches, rates in ((True, True), (True, False), (False, False)):
            found = check_depths(STRUCTURES[name], scale_branches=branches, scale_rates=rates, seeds=range(num_seeds))
            cells = " | ".join(f"{value:.3g}" for value in found.updates.values())
            marks = " | ".join("scaled" if scaled else "as they are" for scaled in (branches, rates))
            print(
                f"| {name} | {marks} | {cells} | {found.update_spread:.2f} | {found.feature_spread:.2f} |", flush=True
            )


def main() -> None:
    """Print the tables of one check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=["coordinates", "depth", "rates"])
    parser.add_argument(
        "--structures", nargs="+", metavar="NAME", help="of depth and rates; all names are in the tables"
    )
    parser.add_argument("--seeds", type=int, help="how many (coordinates and depth: 16; rates: 2)")
    parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam", help="of the check of coordinates")
    arguments = parser.parse_args()
    known = {"coordinates": [], "depth": STRUCTURES, "rates": SWEEPS}[arguments.check]
    if unknown := set(arguments.structures or ()) - set(known):
        parser.error(f"--structures: expected some of {', '.join(known) or 'none'}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if arguments.check == "rates":
        print_rates(arguments.structures or list(SWEEPS), range(arguments.seeds or 2))
    elif arguments.check == "depth":
        print_depths(arguments.structures or DEPTH_STRUCTURES, arguments.seeds or 16)
    else:
        print_coordinates(width_checks(arguments.optimizer, arguments.seeds or 16))


if __name__ == "__main__":
    main()
