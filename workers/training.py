"""The one training loop: Adam at a constant rate after a short warm-up, scored by the held-out loss of averaged weights."""

import inspect
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from einlayers.routing import auxiliary_loss
from workers.probe import Probe
from workers.task import Batch, Task

_PROBED_STEPS = 10
_CHECK_EVERY = 25
"""Steps between looks at the training loss: each look makes a GPU wait."""

_EXPLODED, _HOPELESS = 10.0, 2.0
"""How many times the loss of a model that knows nothing a training batch, and the held-out text, may ever have. Runs at
16 times the tuned rate stayed below 3 times it on their worst batch; those at a rate of 1000 passed 100,000 times it."""


class Diverged(Exception):
    """Training left the region where it could still give a result; the message says where and how."""


class _Adam(torch.optim.Adam):
    """Adam without what torch wraps around it for torch.compile: to import that takes a second of every new slot, as long
    as torch itself."""

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class Training:
    """A model in training: everything that a step changes, so that what was saved continues to the same last bit.

    ``balance`` is the weight of the auxiliary loss of a model with mixtures of experts; 0 for one without.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, object]],
        task: Task,
        *,
        num_steps: int,
        warmup_steps: int,
        balance: float = 0.0,
    ) -> None:
        self.model, self.task, self.num_steps, self.balance = model, task, num_steps, balance
        self.step = 0
        self.optimiser = _Adam(groups, betas=(0.9, 0.95), fused=True)
        warmup = min(warmup_steps, max(1, num_steps // 10))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: min(1.0, (step + 1) / warmup))
        self.averaged = deepcopy(model).requires_grad_(False).eval()
        self._weights: tuple[list[Tensor], list[Tensor]] = list(self.averaged.parameters()), list(model.parameters())
        # The worst loss since the start, because what explodes may end as a dead network with a harmless loss.
        self.worst = torch.zeros((), device=self.device)
        self.probe = Probe(model, task.loss, min(_PROBED_STEPS, num_steps))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def advance(self) -> None:
        """Take one step."""
        batch = next(self.task.batches)
        if self.step == 0:
            self.probe.begin(batch)
        self.update(batch)
        self.step += 1
        self.probe.after(self.step)

    def update(self, batch: Batch) -> None:
        """Change the weights, and what is averaged of them, by a batch."""
        loss = self.backward(batch)
        self.optimiser.step()
        self.schedule.step()
        self._average()
        self.worst = torch.maximum(self.worst, loss.abs())

    def backward(self, batch: Batch) -> Tensor:
        """The training loss of a batch, forward, and its gradients, backward."""
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.task.loss(self.model, batch)
        total = loss + self.balance * auxiliary_loss(self.model) if self.balance else loss
        total.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return loss.detach()

    def score(self) -> float:
        """The held-out loss of the averaged weights.

        Raises:
            Diverged: it is not finite, or much worse than that of a model that knows nothing.
        """
        with torch.no_grad():
            loss = self.task.held_out_loss(self.averaged)
        self._require("held-out", loss, _HOPELESS)
        return loss

    def check(self) -> None:
        """See whether a training loss was ever out of bounds.

        Raises:
            Diverged: one was.
        """
        self._require("training", self.worst.item(), _EXPLODED)

    def state_dict(self) -> dict[str, object]:
        """All of it, the generators' states included, as tensors and plain values."""
        on_gpu = self.device.type == "cuda"
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "worst": self.worst,
            "probe": self.probe.state_dict(),
            "batches": self.task.generator.bit_generator.state,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if on_gpu else None,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to where ``saved`` was taken, from a run with the same model and the same number of steps."""
        self.step = saved["step"]
        self.model.load_state_dict(saved["model"])
        self.averaged.load_state_dict(saved["averaged"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.schedule.load_state_dict(saved["schedule"])
        self.worst = saved["worst"].to(self.device)
        self.probe.load_state_dict(saved["probe"])
        self.task.generator.bit_generator.state = saved["batches"]
        torch.set_rng_state(saved["torch"])
        if self.device.type == "cuda" and saved["cuda"] is not None:
            torch.cuda.set_rng_state(saved["cuda"], self.device)

    @torch.no_grad()
    def _average(self) -> None:
        # avg_t = lerp(avg, w, 11 / (t + 10)): about the last tenth of the run at every t, so that each point can be used.
        # Measured to cut the noise between seeds 2.5 times against the last iterate. Torch's own AveragedModel does the
        # same, and takes a sixth of a small model's step for it.
        torch._foreach_lerp_(*self._weights, min(1.0, 11 / (self.step + 11)))

    def _require(self, kind: str, loss: float, times: float) -> None:
        uninformed = self.task.uninformed_loss
        if not loss <= times * uninformed:  # written so that NaN diverges too
            raise Diverged(
                f"the {kind} loss is {loss:.4g} at step {self.step} of {self.num_steps}; "
                f"a model that knows nothing has {uninformed:.4g}"
            )


def train(
    training: Training, *, record: Callable[[int, float], None], before_step: Callable[[Training], None]
) -> float:
    """Train to the last step; return the held-out loss of the averaged weights there.

    ``record(step, loss)`` is called at every half power of 2 of the budget, and at its end. ``before_step(training)`` may
    save what it is given; what it raises ends the run.

    Raises:
        Diverged: a loss is not finite, or the averaged weights do much worse than a model that knows nothing.
    """
    marks = curve_steps(training.num_steps)
    held_out = math.inf
    while training.step < training.num_steps:
        before_step(training)
        training.advance()
        if training.step % _CHECK_EVERY == 0 or training.step in marks:
            training.check()
        if training.step in marks:
            held_out = training.score()
            record(training.step, held_out)
    return held_out


def curve_steps(num_steps: int) -> frozenset[int]:
    """The steps at 2**(-k/2) of the budget, k = 0..8, at which the learning curve gets a point."""
    return frozenset(max(1, round(num_steps * 2 ** (-k / 2))) for k in range(9))
