"""The one training loop: Adam at a constant rate after a short warm-up, scored by the held-out loss of averaged weights."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

WARMUP_STEPS = 50
_CHECK_EVERY = 25
"""Steps between looks at the training loss: each look makes a GPU wait."""

_EXPLODED, _HOPELESS = 10.0, 2.0
"""How many times the loss of a model that knows nothing a training batch, and the held-out text, may ever have. Runs at
16 times the tuned rate stayed below 3 times it on their worst batch; those at a rate of 1000 passed 100,000 times it."""

Batch = tuple[Tensor, Tensor]
"""Inputs and targets of one step."""

_Tensors = tuple[Tensor, ...] | list[Tensor]


class Diverged(Exception):
    """Training left the region where it could still give a result; the message says where and how."""


class Stopped(Exception):
    """Training was told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the loop needs to know of a proxy: batches, a loss, an evaluation, and the loss of a model that knows nothing."""

    batches: Iterator[Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    held_out_loss: Callable[[nn.Module], float]
    uninformed_loss: float


def train(
    model: nn.Module,
    groups: list[dict[str, object]],
    task: Task,
    *,
    num_steps: int,
    checkpoint: Callable[[int, float], None],
    should_stop: Callable[[], bool],
) -> float:
    """Train for ``num_steps``; return the held-out loss of the averaged weights at the end.

    ``checkpoint(step, loss)`` is called at every half power of 2 of the budget, and at its end.

    Raises:
        Diverged: a loss is not finite, or the averaged weights do much worse than a model that knows nothing.
        Stopped: ``should_stop`` said so between two steps.
    """
    device = next(model.parameters()).device
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95), fused=True)
    warmup = min(WARMUP_STEPS, max(1, num_steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / warmup))
    averaged = AveragedModel(model, multi_avg_fn=_average)
    marks = checkpoints(num_steps)
    held_out = math.inf
    worst = torch.zeros((), device=device)
    for step, batch in enumerate(islice(task.batches, num_steps), start=1):
        if should_stop():
            raise Stopped
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = task.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimiser.step()
        schedule.step()
        averaged.update_parameters(model)
        # The worst since the start, because what explodes may end as a dead network with a loss that looks harmless.
        worst = torch.maximum(worst, loss.detach().abs())
        if step % _CHECK_EVERY == 0 or step in marks:
            _require("training", worst.item(), _EXPLODED * task.uninformed_loss, task, step, num_steps)
        if step in marks:
            held_out = _score(averaged, task, step, num_steps)
            checkpoint(step, held_out)
    return held_out


def checkpoints(num_steps: int) -> frozenset[int]:
    """The steps at 2**(-k/2) of the budget, k = 0..8, at which the learning curve gets a point."""
    return frozenset(max(1, round(num_steps * 2 ** (-k / 2))) for k in range(9))


@torch.no_grad()
def _average(averaged: _Tensors, current: _Tensors, num_averaged: Tensor | int) -> None:
    # avg_t = lerp(avg, w, 11 / (t + 10)): about the last tenth of the run at every t, so that each checkpoint can be used.
    # Measured to cut the noise between seeds 2.5 times against the last iterate.
    torch._foreach_lerp_(list(averaged), list(current), 11 / (int(num_averaged) + 11))


def _score(averaged: AveragedModel, task: Task, step: int, num_steps: int) -> float:
    with torch.no_grad():
        loss = task.held_out_loss(averaged.module)
    _require("held-out", loss, _HOPELESS * task.uninformed_loss, task, step, num_steps)
    return loss


def _require(kind: str, loss: float, limit: float, task: Task, step: int, num_steps: int) -> None:
    if not loss <= limit:  # written so that NaN diverges too
        raise Diverged(
            f"the {kind} loss is {loss:.4g} at step {step} of {num_steps}; "
            f"a model that knows nothing has {task.uninformed_loss:.4g}"
        )
