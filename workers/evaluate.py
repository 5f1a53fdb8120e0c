"""What a structure is worth: one trial from its spec to its outcome, the same wherever it runs."""

import time
from collections.abc import Callable

import torch

from einlayers.errors import FieldError
from search.trial import Outcome, Report, TrialSpec
from workers.proxies.registry import proxy_for
from workers.training import Diverged, Stopped, train
from workers.transfer import param_groups
from workers.workspace import Workspace


def ignore(report: Report) -> None:
    """Let a report pass unheard."""


def never() -> bool:
    """Do not stop."""
    return False


def evaluate(
    spec: TrialSpec,
    workspace: Workspace,
    *,
    report: Callable[[Report], None] = ignore,
    should_stop: Callable[[], bool] = never,
    device: str = "cpu",
) -> Outcome:
    """Train ``spec`` to its budget and score it. The same spec on the same kind of machine gives the same loss.

    A structure that diverges, or data that cannot serve it, is an infeasible outcome; anything else that goes wrong is
    a fault of the code or the machine and is raised.
    """
    started = time.perf_counter()
    curve: list[Report] = []

    def record(step: int, loss: float) -> None:
        tokens = step * spec.proxy.batch_size * spec.proxy.context
        curve.append(Report(step=step, tokens=tokens, train_flops=6.0 * macs * tokens, loss=loss))
        report(curve[-1])

    def seconds() -> float:
        return time.perf_counter() - started

    macs = spec.proxy.cost(spec.theta, spec.width).macs
    try:
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            model = proxy_for(spec.proxy).build(spec).to(device)
        loss = train(
            model,
            param_groups(model, base_lr=spec.proxy.base_lr, base_width=spec.proxy.BASE_WIDTH, width=spec.width),
            proxy_for(spec.proxy).task(spec, workspace, torch.device(device)),
            num_steps=spec.proxy.num_steps(macs),
            checkpoint=record,
            should_stop=should_stop,
        )
    except (Diverged, FieldError) as reason:
        return Outcome.infeasible(str(reason), curve=tuple(curve), seconds=seconds())
    except Stopped:
        return Outcome.cancelled(curve=tuple(curve), seconds=seconds())
    return Outcome.completed(loss=loss, curve=tuple(curve), seconds=seconds())
