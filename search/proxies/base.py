"""What all proxies have in common on paper: their settings, the shapes of their layers, their exact cost.

Everything that can be known about a trial before a second of training is spent follows from here: the width that makes
a structure cost what the dense model costs, its parameters, its MACs, and the layers that it consists of. Training is
``workers``' part.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from pydantic import ConfigDict

from einlayers.dims import MAX_WIDTH
from einlayers.taxonomy import layer_cost
from einlayers.theta import NAMED, Theta
from search.checks import Flag, Number, Whole, check_number, check_whole

NAMED_BY_KIND: ConfigDict = {"extra": "forbid", "json_schema_extra": {"required": ["kind"]}}
"""How a proxy is told apart in JSON; one of them alone need not say its kind, or nobody could tell which one is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """A kind of replaceable linear layer in a model: its name, its widths, how often it occurs."""

    name: str
    d_in: int
    d_out: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """A whole model: all parameters, and forward MACs per example (a token, or a row), all layers included."""

    params: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings(ABC):
    """A small model and its task, trained for ``train_flops``: 6 MACs per example and parameter use.

    ``width`` fixes one width for every structure; by default each structure gets the width whose MACs per example are
    nearest those of the dense model at ``dense_width``, so that equal compute is also equal data. One fixed width ranks
    reproducibly and wrongly; it is there only to be asked for.

    ``base_lr`` is the learning rate of the dense model at about ``base_width``, which muP carries to every other model; by
    default it is calibrated there. Embeddings, gains and biases have ``input_lr_mult`` times that rate at every width. The
    rate rises over ``warmup_steps``, at most a tenth of all steps, and is constant then. ``weight_norm`` caps each factor of
    a structured layer at its initial scale and gives it a gain (2406.06248, section 4.3).

    Raises:
        FieldError: a value is outside its range.
    """

    kind: str
    dense_width: Whole
    width: Whole | None = None
    depth: Whole
    batch_size: Whole
    train_flops: Number
    base_lr: Number | None = None
    base_width: Whole
    input_lr_mult: Number
    warmup_steps: Whole = 50
    weight_norm: Flag = False

    SHIPPED_LR: ClassVar[float]
    """The learning rate that was calibrated for the default settings; where a calibration of other ones looks around."""

    def __post_init__(self) -> None:
        for name in ("dense_width", "width"):
            width = getattr(self, name)
            if width is not None or name == "dense_width":
                check_whole(name, width, self.width_step, 4096, multiple_of=self.width_step)
        check_whole("depth", self.depth, 1, 96)
        check_whole("batch_size", self.batch_size, 1, 65_536)
        check_number("train_flops", self.train_flops, 1e6, 1e21)
        if self.base_lr is not None:
            check_number("base_lr", self.base_lr, 1e-8, 1e8)
        check_whole("base_width", self.base_width, 1, 4096)
        check_number("input_lr_mult", self.input_lr_mult, 1e-4, 1e4)
        check_whole("warmup_steps", self.warmup_steps, 1, 1_000_000)

    @property
    def width_step(self) -> int:
        """What every width is a multiple of."""
        return 1

    @property
    @abstractmethod
    def examples_per_step(self) -> int:
        """How many examples an optimiser step sees."""

    @property
    def passes_per_example(self) -> int:
        """How often an example passes through a replaceable layer."""
        return 1

    @abstractmethod
    def layers(self, width: int) -> tuple[LayerShape, ...]:
        """The replaceable layers of the model."""

    @abstractmethod
    def fixed_cost(self, width: int) -> ModelCost:
        """What the model costs outside of the replaceable layers."""

    def cost(self, theta: Theta, width: int) -> ModelCost:
        """Parameters and MACs per example of the model whose layers have the structure ``theta``."""
        fixed = self.fixed_cost(width)
        layers = [(layer.count, layer_cost(theta, layer.d_in, layer.d_out)) for layer in self.layers(width)]
        gains = 2 * sum(layer.count for layer in self.layers(width)) if self.weight_norm and not theta.is_dense else 0
        return ModelCost(
            params=sum(n * cost.params for n, cost in layers) + gains + fixed.params,
            macs=self.passes_per_example * sum(n * cost.macs for n, cost in layers) + fixed.macs,
        )

    def width_for(self, theta: Theta) -> int:
        """The width of this structure: the fixed one, or the one that costs what the dense model costs."""
        if self.width is not None:
            return self.width
        return self.width_near(theta, self.cost(NAMED["dense"], self.dense_width).macs)

    def width_near(self, theta: Theta, macs: float) -> int:
        """The width at which this structure costs about so many MACs per example."""
        return _width_near(self, theta, macs)

    def nearest_width(self, width: float) -> int:
        """The width nearest to this one that the model can have."""
        return max(1, round(width / self.width_step)) * self.width_step

    def candidate_widths(self) -> Iterator[int]:
        """The widths that a model may have: every multiple of ``width_step``, later on in steps of under 2%."""
        step = width = self.width_step
        while max(max(layer.d_in, layer.d_out) for layer in self.layers(width)) <= MAX_WIDTH:
            yield width
            width += step * max(1, width // (64 * step))

    def num_steps(self, macs: int) -> int:
        """How many optimiser steps ``train_flops`` pays for, at least one: 6 MACs per example for forward and backward."""
        return max(1, round(self.train_flops / (6 * macs * self.examples_per_step)))


@lru_cache(maxsize=4096)
def _width_near(proxy: ProxySettings, theta: Theta, target: float) -> int:
    nearest, smallest_gap = proxy.width_step, float("inf")
    for width in proxy.candidate_widths():
        # The rest of the model grows with the width whatever the structure: once it alone is too much, so is the whole.
        if proxy.fixed_cost(width).macs - target >= smallest_gap:
            break
        gap = abs(proxy.cost(theta, width).macs - target)
        if gap < smallest_gap:
            nearest, smallest_gap = width, gap
    return nearest
