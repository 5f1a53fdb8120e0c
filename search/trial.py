"""What crosses the border to a worker and back: a ``TrialSpec`` out, ``Report``s on the way, one ``Outcome`` last."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from einlayers.errors import FieldError
from einlayers.theta import Theta
from search.checks import check_number, check_whole
from search.proxies.registry import ProxySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One training run: this structure, at this width, on this proxy, from this seed; ``measured``: after what a step of it
    costs on its device was measured."""

    theta: Theta
    proxy: ProxySpec
    width: int
    seed: int
    measured: bool = False

    def __post_init__(self) -> None:
        check_whole("width", self.width, 1, 2**20)
        check_whole("seed", self.seed, 0, 2**63 - 1)
        if self.proxy.base_lr is None:
            raise FieldError("proxy", expected="a learning rate that was calibrated", got=self.proxy)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What a training step of a model costs on its device, at the batch of its proxy: ``latency``, the seconds of a forward
    and a backward pass, and ``peak_memory``, the most bytes that tensors take at once.

    Raises:
        FieldError: one of them is no positive number.
    """

    latency: float
    peak_memory: int

    def __post_init__(self) -> None:
        check_number("latency", self.latency, 1e-9, 1e9)
        check_whole("peak_memory", self.peak_memory, 1, 2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A point of the learning curve: held-out loss of the averaged weights after so many examples (of text: tokens); with
    what a step costs, where that was measured."""

    step: int
    examples: int
    train_flops: float
    loss: float
    step_cost: StepCost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """Of a kind of layer, how large its outputs are before training, and how far the first steps move them: root mean
    squares over a batch. Where the learning rate transfers, neither depends on the width (2203.03466, appendix D.1)."""

    features: float
    updates: float


class OutcomeKind(StrEnum):
    """How a training run ended."""

    COMPLETED = "COMPLETED"
    INFEASIBLE = "INFEASIBLE"
    FAILED = "FAILED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    CHECKPOINTED = "CHECKPOINTED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a training run: a finite loss, or the reason why there is none; its curve; its time in seconds, of the
    clock and of the processor; the step of the checkpoint that it continued from, 0 where it began anew; the coordinates
    of its kinds of layers, once they have been measured."""

    kind: OutcomeKind
    loss: float | None = None
    reason: str | None = None
    curve: tuple[Report, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    resumed_step: int = 0
    coordinates: Mapping[str, Coordinates] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.kind is OutcomeKind.COMPLETED) != (self.loss is not None and math.isfinite(self.loss)):
            raise FieldError("loss", expected="a finite loss if and only if the run completed", got=self.loss)
        if (self.kind is OutcomeKind.COMPLETED) == bool(self.reason):
            raise FieldError("reason", expected="a reason if and only if the run did not complete", got=self.reason)

    @classmethod
    def completed(cls, *, loss: float, curve: tuple[Report, ...] = (), seconds: float = 0.0) -> "Outcome":
        """The run reached its budget with this loss."""
        return cls(kind=OutcomeKind.COMPLETED, loss=loss, curve=curve, seconds=seconds)

    @classmethod
    def infeasible(cls, reason: str, *, curve: tuple[Report, ...] = (), seconds: float = 0.0) -> "Outcome":
        """The structure cannot be trained this way: a result about the structure, not a fault."""
        return cls(kind=OutcomeKind.INFEASIBLE, reason=reason, curve=curve, seconds=seconds)

    @classmethod
    def failed(cls, reason: str) -> "Outcome":
        """The code raised: ``reason`` is the traceback."""
        return cls(kind=OutcomeKind.FAILED, reason=reason)

    @classmethod
    def out_of_memory(cls, reason: str, *, curve: tuple[Report, ...] = (), seconds: float = 0.0) -> "Outcome":
        """The device, or the machine, had no memory left for the run."""
        return cls(kind=OutcomeKind.OUT_OF_MEMORY, reason=reason, curve=curve, seconds=seconds)

    @classmethod
    def checkpointed(cls, *, curve: tuple[Report, ...] = (), seconds: float = 0.0) -> "Outcome":
        """The run was told to write a checkpoint and to stop; another run can continue from there."""
        return cls(kind=OutcomeKind.CHECKPOINTED, reason="wrote a checkpoint on request", curve=curve, seconds=seconds)

    @classmethod
    def cancelled(cls, *, curve: tuple[Report, ...] = (), seconds: float = 0.0) -> "Outcome":
        """The run was told to stop."""
        return cls(kind=OutcomeKind.CANCELLED, reason="stopped on request", curve=curve, seconds=seconds)
