"""A plan: trainings that are known before the first one starts. What is measured rather than searched is a plan:
calibrations, baselines, scaling laws, fidelity.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from einlayers.errors import FieldError
from einlayers.theta import Theta
from search.checks import Number, Whole, check_number, check_whole
from search.proxies.registry import ProxySpec

MAX_RUNS = 10_000
"""The plan is read with every load of its search: so many runs take a tenth of a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training of a structure; what is given here takes the place of what the proxy of the search says. ``lr_mult``
    multiplies the learning rate of the proxy, for who does not know it beforehand.

    Raises:
        FieldError: there are both a learning rate and a multiple of one.
    """

    theta: Theta
    width: Whole | None = None
    train_flops: Number | None = None
    base_lr: Number | None = None
    lr_mult: Number | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.lr_mult is not None:
            check_number("lr_mult", self.lr_mult, 1e-6, 1e6)
            if self.base_lr is not None:
                raise FieldError("lr_mult", expected="either base_lr or lr_mult", got=self.lr_mult)

    def on(self, proxy: ProxySpec) -> ProxySpec:
        """The proxy that it is trained on.

        Raises:
            FieldError: a value is outside of what the proxy allows.
        """
        changes = {name: getattr(self, name) for name in ("width", "train_flops", "base_lr")}
        if self.lr_mult is not None and proxy.base_lr is not None:
            changes["base_lr"] = proxy.base_lr * self.lr_mult
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
