"""Train structured, finish dense: "reverse sparsification" of a character GPT (2204.00595, section 3.3).

Run ``python examples/reverse_sparsification.py``; it takes about a minute on one core. The GPT learns with Monarch layers
first, at a fifth of the multiplications of dense ones. Then its layers are multiplied out, which changes nothing that it
computes, and training goes on with all weights free, at the rates that muP has for dense layers.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from einlayers.surgery import densify, param_groups
from einlayers.theta import NAMED
from search.proxies.char_lm import CharLM
from workers.proxies.char_lm import CharLMProxy
from workers.task import Task
from workers.workspace import Workspace

PROXY = CharLM(width=64, depth=2)
WARMUP_STEPS = 20
"""A new optimiser knows nothing of the size of gradients; its first steps are the riskiest, so they are small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Held-out losses, nats per character: on the way with structured layers, at the switch, and on the way after it."""

    structured: tuple[float, ...]
    before_switch: float
    after_switch: float
    dense: tuple[float, ...]


def main(
    proxy: CharLM = PROXY,
    *,
    num_structured_steps: int = 2000,
    num_dense_steps: int = 500,
    check_every: int = 100,
    workspace: Workspace | None = None,
) -> Result:
    """Train with Monarch layers, multiply out, go on; print and return the held-out losses."""
    with tempfile.TemporaryDirectory() as folder:
        return _run(
            proxy, num_structured_steps, num_dense_steps, check_every, workspace or Workspace(cache_dir=Path(folder))
        )


def _run(
    proxy: CharLM, num_structured_steps: int, num_dense_steps: int, check_every: int, workspace: Workspace
) -> Result:
    torch.manual_seed(0)
    model = CharLMProxy(proxy).build(NAMED["monarch"], proxy.width_for(NAMED["monarch"]))
    task = CharLMProxy(proxy).task(0, workspace, torch.device("cpu"))

    structured = tuple(_train(model, task, proxy, num_structured_steps, check_every))
    before_switch = _held_out(model, task)
    report = densify(model)
    after_switch = _held_out(model, task)
    print(f"{report}\nheld-out loss with structured layers {before_switch:.6f}, multiplied out {after_switch:.6f}")
    dense = tuple(_train(model, task, proxy, num_dense_steps, check_every))
    return Result(structured=structured, before_switch=before_switch, after_switch=after_switch, dense=dense)


def _train(model: nn.Module, task: Task, proxy: CharLM, num_steps: int, check_every: int) -> Iterator[float]:
    """Train with a new optimiser at the rates for the layers that are there now; yield held-out losses on the way."""
    rate = proxy.base_lr or proxy.SHIPPED_LR
    groups = param_groups(model, rate, base=_base(proxy), input_lr_mult=proxy.input_lr_mult)
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))
    for step, batch in enumerate(islice(task.batches, num_steps), start=1):
        optimiser.zero_grad()
        task.loss(model, batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimiser.step()
        schedule.step()
        if step % check_every == 0:
            loss = _held_out(model, task)
            print(f"step {step:5d}  held-out loss {loss:.4f}")
            yield loss


def _base(proxy: CharLM) -> nn.Module:
    """The dense model that the rate was tuned on; only its shapes count."""
    with torch.device("meta"):
        return CharLMProxy(proxy).build(NAMED["dense"], proxy.nearest_width(proxy.base_width))


def _held_out(model: nn.Module, task: Task) -> float:
    with torch.no_grad():
        return task.held_out_loss(model)


if __name__ == "__main__":
    main()
