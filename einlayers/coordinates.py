"""The coordinate check: whether a rule for initial scales and learning rates is muP, measured on the model itself.

Train the same model at several sizes for a few steps and look at its features: where the rule is right, neither their size
nor how far they move depends on the size of the model (2203.03466, appendix D.1; 2011.14522). Sizes are widths, or depths.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from einlayers.dims import check_size
from einlayers.errors import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """How large the features of one module are, and how far training moved them, at each size of the model.

    Both are root mean squares over the batch and the features, averaged over seeds.
    """

    features: Mapping[int, float]
    """Of the output before training, by size."""
    updates: Mapping[int, float]
    """Of the change of the output since then, by size."""

    @property
    def feature_spread(self) -> float:
        """The largest over the smallest of ``features``: 1.2 is flat within 20 percent."""
        return spread(self.features)

    @property
    def update_spread(self) -> float:
        """The largest over the smallest of ``updates``."""
        return spread(self.updates)


def coordinate_check(
    build: Callable[[int], nn.Module],
    sizes: Sequence[int],
    *,
    names: Sequence[str],
    loss: Callable[[nn.Module], Tensor],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    num_steps: int = 4,
    seeds: Sequence[int] = (0, 1, 2, 3),
) -> dict[str, Coordinates]:
    """The coordinates of the modules called ``names`` over ``sizes``, after ``num_steps`` steps on one batch.

    ``build`` makes the model of a size, ``optimizer`` its optimiser, and ``loss`` applies it to one batch, the same every
    time; all three run with torch's generator set to the seed, which is left as it was found. Of a module that runs several
    times the last run counts. Where the head starts as zero the first step moves only the head: ``num_steps`` is two at
    least then. Few seeds, narrow layers and steps so large that the moves are not proportional to them all add spread.

    Raises:
        FieldError: there are fewer than two sizes, no seeds, no steps, or a name that the model lacks or never runs, or
            whose output is not one tensor.
    """
    if len(sizes) < 2:
        raise FieldError("sizes", expected="two or more sizes to compare", got=sizes)
    if not seeds:
        raise FieldError("seeds", expected="at least one seed", got=seeds)
    check_size("num_steps", num_steps)
    by_size = {size: [_moves(build, size, seed, names, loss, optimizer, num_steps) for seed in seeds] for size in sizes}
    return {
        name: Coordinates(
            features={size: fmean(run[name][0] for run in runs) for size, runs in by_size.items()},
            updates={size: fmean(run[name][1] for run in runs) for size, runs in by_size.items()},
        )
        for name in names
    }


def spread(by_size: Mapping[int, float]) -> float:
    """The largest value over the smallest; infinite where the smallest is not positive, or a value is not finite."""
    smallest, largest = min(by_size.values()), max(by_size.values())
    finite = all(math.isfinite(value) for value in by_size.values())
    return largest / smallest if finite and smallest > 0 else math.inf


def _moves(
    build: Callable[[int], nn.Module],
    size: int,
    seed: int,
    names: Sequence[str],
    loss: Callable[[nn.Module], Tensor],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    num_steps: int,
) -> dict[str, tuple[float, float]]:
    """The rms of each output at the start, and of its change over the steps, of one model from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(size)
        steps = optimizer(model)
        outputs = _recorded(model, names)
        before: dict[str, Tensor] = {}
        for step in range(num_steps + 1):
            steps.zero_grad()
            value = loss(model)
            if step == 0:
                before = _copied(outputs, names)
            if step < num_steps:
                value.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
                steps.step()
    return {name: (_rms(before[name]), _rms(outputs[name] - before[name])) for name in names}


def _recorded(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """A table that always holds the latest output of each module."""
    outputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise FieldError("names", expected=f"names of modules, such as {', '.join(list(modules)[1:4])}", got=name)

        def keep(module: nn.Module, args: object, output: object, name: str = name) -> None:
            if not isinstance(output, Tensor):
                raise FieldError("names", expected="modules whose output is one tensor", got=name)
            outputs[name] = output.detach()

        modules[name].register_forward_hook(keep)
    return outputs


def _copied(outputs: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    for name in names:
        if name not in outputs:
            raise FieldError("names", expected="modules that the loss runs", got=name)
    return {name: output.clone() for name, output in outputs.items()}


def _rms(values: Tensor) -> float:
    return values.float().square().mean().sqrt().item()
