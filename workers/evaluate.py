"""What a structure is worth: one trial from its spec to its outcome, the same wherever, and in how many pieces, it runs."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch

from einlayers.errors import FieldError
from search.trial import Outcome, OutcomeKind, Report, StepCost, TrialSpec
from workers.checkpoints import Checkpoint, Checkpoints
from workers.proxies.registry import proxy_for
from workers.step_cost import step_cost
from workers.training import Diverged, Training, train
from workers.transfer import param_groups
from workers.workspace import Workspace

_NO_MEMORY = ("not enough memory", "can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
"""How torch says in a plain ``RuntimeError`` that there is no memory left."""

_TRIAL_GOES_ON = (OutcomeKind.CHECKPOINTED, OutcomeKind.OUT_OF_MEMORY)
"""Outcomes after which the trial may run again, so that its checkpoints are kept."""

logger = logging.getLogger(__name__)


class _Stopped(Exception):
    """Training was told to stop."""


class _Checkpointed(Exception):
    """Training was told to save where it is and to stop."""


def ignore(report: Report) -> None:
    """Let a report pass unheard."""


def never() -> bool:
    """Do not stop."""
    return False


def evaluate(
    spec: TrialSpec,
    workspace: Workspace,
    *,
    key: str | None = None,
    report: Callable[[Report], None] = ignore,
    should_stop: Callable[[], bool] = never,
    should_checkpoint: Callable[[], bool] = never,
    device: str = "cpu",
) -> Outcome:
    """Train ``spec`` to its budget and score it. The same spec on the same kind of machine gives the same loss.

    As the attempt ``key`` it continues from the newest checkpoint of the attempts before it, if there is one: the curve and
    the seconds of its outcome are then those of the whole run. A structure that diverges, or data that cannot serve it, is
    an infeasible outcome; anything else that goes wrong is a fault of the code or the machine and is raised.

    Raises:
        ValueError: ``key`` is not the id of an attempt, and there are checkpoints.
    """
    with _Run(spec, workspace, key, report, should_stop, should_checkpoint) as run:
        outcome = run.outcome(device)
    if outcome.kind not in _TRIAL_GOES_ON:
        run.forget()
    return outcome


class _Run:
    """One run from where it starts or continues, to where it ends or is interrupted."""

    def __init__(
        self,
        spec: TrialSpec,
        workspace: Workspace,
        key: str | None,
        report: Callable[[Report], None],
        should_stop: Callable[[], bool],
        should_checkpoint: Callable[[], bool],
    ) -> None:
        self._spec, self._workspace = spec, workspace
        self._report, self._should_stop, self._should_checkpoint = report, should_stop, should_checkpoint
        folder = workspace.checkpoints_dir
        self._files = Checkpoints(folder, key, spec) if folder and key is not None else None
        self._macs = spec.proxy.cost(spec.theta, spec.width).macs
        self._curve: list[Report] = []
        self._step_cost: StepCost | None = None
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self._next_checkpoint = math.inf
        self._resumed_step = 0
        self._training: Training | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # A fault ends the trial; whatever ends the process does not.
        if isinstance(error, Exception):
            self.forget()

    def outcome(self, device: str) -> Outcome:
        """Train; every way in which that can end, but a fault, is an outcome."""
        return replace(
            self._end(device),
            curve=tuple(self._curve),
            seconds=self._seconds(),
            cpu_seconds=self._cpu_seconds(),
            resumed_step=self._resumed_step,
            coordinates=self._training.probe.found if self._training else {},
        )

    def forget(self) -> None:
        """Delete the trial's checkpoints."""
        if self._files:
            self._files.delete()

    def _end(self, device: str) -> Outcome:
        try:
            # The generators are the process's: as they were before, and afterwards.
            with torch.random.fork_rng():
                return Outcome.completed(loss=self._train(device))
        except (Diverged, FieldError) as reason:
            return Outcome.infeasible(str(reason))
        except _Stopped:
            return Outcome.cancelled()
        except _Checkpointed:
            return Outcome.checkpointed()
        except (MemoryError, torch.OutOfMemoryError) as error:
            return Outcome.out_of_memory(_in_a_line(error))
        except RuntimeError as error:
            if any(phrase in str(error) for phrase in _NO_MEMORY):
                return Outcome.out_of_memory(_in_a_line(error))
            raise

    def _train(self, device: str) -> float:
        saved = self._files.newest() if self._files else None
        if self._spec.measured:
            # By a training of its own, of which nothing is left: the trial is the same as without.
            self._step_cost = _known_cost(saved) or step_cost(self._begin(device))
        self._training = training = self._begin(device)
        if saved:
            self._resume(training, saved)
        self._next_checkpoint = time.perf_counter() + self._workspace.checkpoint_every
        return train(training, record=self._record, before_step=self._before_step)

    def _begin(self, device: str) -> Training:
        spec, proxy = self._spec, proxy_for(self._spec.proxy)
        torch.manual_seed(spec.seed)
        model = proxy.build(spec.theta, spec.width).to(device)
        return Training(
            model,
            param_groups(model, spec.proxy),
            proxy.task(_data_seed(spec), self._workspace, torch.device(device)),
            num_steps=spec.proxy.num_steps(self._macs),
            warmup_steps=spec.proxy.warmup_steps,
            balance=spec.proxy.mixture.balance if spec.proxy.mixture else 0.0,
        )

    def _resume(self, training: Training, saved: Checkpoint) -> None:
        training.load_state_dict(saved.training)
        self._resumed_step = training.step
        self._curve = list(saved.curve)
        self._started -= saved.seconds
        self._cpu_started -= saved.cpu_seconds

    def _before_step(self, training: Training) -> None:
        if self._should_stop():
            raise _Stopped
        if self._should_checkpoint():
            self._save(training)
            raise _Checkpointed
        if self._files and time.perf_counter() >= self._next_checkpoint:
            self._save(training)

    def _save(self, training: Training) -> None:
        if self._files is None:
            return
        try:
            self._files.write(
                Checkpoint(
                    training=training.state_dict(),
                    curve=tuple(self._curve),
                    seconds=self._seconds(),
                    cpu_seconds=self._cpu_seconds(),
                )
            )
        except OSError as error:
            # What is lost is time, if the slot is lost too; a full disk is no reason to lose the trial now.
            logger.warning("the checkpoint %s was not written: %s", self._files.path, error)
        self._next_checkpoint = time.perf_counter() + self._workspace.checkpoint_every

    def _record(self, step: int, loss: float) -> None:
        examples = step * self._spec.proxy.examples_per_step
        point = Report(
            step=step,
            examples=examples,
            train_flops=6.0 * self._macs * examples,
            loss=loss,
            step_cost=self._step_cost,
        )
        self._curve.append(point)
        self._report(point)

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _cpu_seconds(self) -> float:
        return time.process_time() - self._cpu_started


def _data_seed(spec: TrialSpec) -> int:
    return spec.seed if spec.proxy.data_seed is None else spec.proxy.data_seed


def _known_cost(saved: Checkpoint | None) -> StepCost | None:
    return saved.curve[-1].step_cost if saved and saved.curve else None


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300] or 'no message'}"
