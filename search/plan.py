"""A plan: trainings that are known before the first one starts. What is measured rather than searched is a plan:
calibrations, baselines, scaling laws, fidelity.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from einlayers.errors import FieldError
from einlayers.theta import Theta
from search.checks import Number, Whole, check_whole
from search.proxies.registry import ProxySpec

MAX_RUNS = 10_000
"""The plan is read with every load of its search: so many runs take a tenth of a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training of a structure; what is given here takes the place of what the proxy of the search says."""

    theta: Theta
    width: Whole | None = None
    train_flops: Number | None = None
    base_lr: Number | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def on(self, proxy: ProxySpec) -> ProxySpec:
        """The proxy that it is trained on.

        Raises:
            FieldError: a value is outside of what the proxy allows.
        """
        changes = {name: getattr(self, name) for name in ("width", "train_flops", "base_lr")}
        return replace(proxy, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """No sampling: these runs, in this order, each from a seed of its own; equal ones are replicates."""

    runs: tuple[Run, ...]
    kind: Literal["plan"] = "plan"
    seed: Whole = 0

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**63 - 1)
        if not 1 <= len(self.runs) <= MAX_RUNS:
            raise FieldError("runs", expected=f"1 to {MAX_RUNS} runs", got=f"{len(self.runs)} runs")
