"""Calibration: the base learning rate of a proxy, tuned on the small dense model that muP carries it from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from einlayers.errors import FieldError
from einlayers.theta import NAMED
from search.checks import Number, Whole, check_number, check_whole
from search.plan import Run
from search.proxies.registry import ProxySpec
from search.studies.base import Part, StudySettings

_FACTORS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration(StudySettings):
    """Train the dense model of the proxy's ``base_width`` at several learning rates and warm-ups.

    By default the rates are an eighth to eight times the one that comes along for the proxy's default settings, in steps
    of two. Every run sees as many examples as the proxy's own dense model, because a rate that is best early is too high
    later. The calibration serves every proxy that differs in size, budget, learning rate and options of its layers alone.
    """

    kind: Literal["calibration"] = "calibration"
    learning_rates: tuple[Number, ...] = ()
    warmup_steps: tuple[Whole, ...] = (50,)
    replicates: Whole = 2

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        StudySettings.__post_init__(self)
        for rate in self.learning_rates:
            check_number("learning_rates", rate, 1e-8, 1e8)
        for steps in self.warmup_steps:
            check_whole("warmup_steps", steps, 1, 1_000_000)
        for name, values in (("learning_rates", self.learning_rates), ("warmup_steps", self.warmup_steps)):
            if len(set(values)) < len(values) or len(values) > 32:
                raise FieldError(name, expected="at most 32 values, each once", got=values)
        if not self.warmup_steps:
            raise FieldError("warmup_steps", expected="at least one value", got=self.warmup_steps)
        check_whole("replicates", self.replicates, 1, 100)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are tried, in ascending order."""
        return tuple(sorted(self.learning_rates)) or tuple(self.proxy.SHIPPED_LR * factor for factor in _FACTORS)

    @property
    def subject(self) -> ProxySpec:
        """The plain model, at the depth that the rate is tuned at."""
        return self.proxy.tuned_on

    def parts(self) -> Mapping[str, Part]:
        """One for each warm-up: the rates, once for each replicate."""
        proxy = self.subject
        width = proxy.nearest_width(proxy.base_width)
        train_flops = proxy.train_flops * proxy.cost(NAMED["dense"], width).macs / proxy.dense_macs
        runs = tuple(
            Run(theta=NAMED["dense"], width=width, base_lr=rate, train_flops=train_flops)
            for _ in range(self.replicates)
            for rate in self.rates
        )
        return {
            f"warm-up of {steps} steps": Part(
                proxy=replace(proxy, base_lr=self.rates[0], warmup_steps=steps), runs=runs, seed=self.seed
            )
            for steps in self.warmup_steps
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One learning rate and warm-up: the losses from every seed, null where it diverged, and their mean."""

    base_lr: float
    warmup_steps: int
    losses: tuple[float | None, ...]
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What a calibration has found: the rate and warm-up with the lowest mean loss, the rate interpolated between those of
    the sweep, the lowest loss in it, and the sweep.

    ``bracketed``: a lower and a higher rate were tried and did worse.
    """

    kind: Literal["calibration"] = "calibration"
    base_lr: float
    warmup_steps: int
    loss: float
    bracketed: bool
    sweep: tuple[SweepPoint, ...]
