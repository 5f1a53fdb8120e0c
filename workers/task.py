"""What a proxy gives the training loop: batches, a loss, an evaluation."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Inputs and targets of one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the loop needs to know of a proxy: batches, a loss, an evaluation, and the loss of a model that knows nothing.

    ``batches`` never ends. It draws every batch from ``generator``, or from torch's, and remembers nothing else from one
    batch to the next: restoring the generators is enough to continue it.
    """

    batches: Iterator[Batch]
    generator: np.random.Generator
    loss: Callable[[nn.Module, Batch], Tensor]
    held_out_loss: Callable[[nn.Module], float]
    uninformed_loss: float


def mean_loss(loss: Callable[[nn.Module, Batch], Tensor], model: nn.Module, batches: Iterable[Batch]) -> float:
    """The mean of a loss over all targets of some batches."""
    losses = [(loss(model, batch).item(), batch[1].numel()) for batch in batches]
    return math.fsum(loss * count for loss, count in losses) / sum(count for _, count in losses)
