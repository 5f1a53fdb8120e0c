"""What all proxies have in common on paper: their settings, the shapes of their layers, their exact cost.

Everything that can be known about a trial before a second of training is spent follows from here: the width that makes
a structure cost what the dense model costs, its parameters, its MACs, and the layers that it consists of. Training is
``workers``' part.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

from pydantic import ConfigDict

from einlayers.dims import MAX_WIDTH
from einlayers.errors import FieldError
from einlayers.scaling import branch_scale
from einlayers.taxonomy import ideal_macs, is_dense, layer_cost, padded_macs
from einlayers.theta import NAMED, Theta
from search.checks import Flag, Number, Whole, check_number, check_whole
from search.proxies.shapes import GroupName, GroupThetas, LayerShape, Mixture, ModelCost

NAMED_BY_KIND: ConfigDict = {"extra": "forbid", "json_schema_extra": {"required": ["kind"]}}
"""How a proxy is told apart in JSON; one of them alone need not say its kind, or nobody could tell which one is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings(ABC):
    """A small model and its task, trained for ``train_flops``: 6 MACs per example and parameter use.

    ``width`` fixes one width for every structure; by default each structure gets the width whose MACs per example are
    nearest those of the dense model at ``dense_width``, so that equal compute is also equal data. One fixed width ranks
    reproducibly and wrongly; it is there only to be asked for.

    ``base_lr`` is the learning rate of the dense model at about ``base_width``, which muP carries to every other model; by
    default it is calibrated there. Embeddings, gains and biases have ``input_lr_mult`` times that rate at every width. The
    rate rises over ``warmup_steps``, at most a tenth of all steps, and is constant then. ``base_depth`` is the depth that
    the rate was tuned at, where it is another: residual branches and the rates within them are then scaled for the model's
    own (2310.02244).

    ``weight_norm`` caps each factor of a structured layer at its initial scale and gives it a gain (2406.06248, section
    4.3). ``mixture`` makes mixtures of experts of the layers. ``thetas`` are the structures of groups of layers that do not
    have that of the trial.

    The initialisation of a trial follows from its seed, and so does the order of its data, unless ``data_seed`` says that
    all trials see the same.

    Raises:
        FieldError: a value is outside its range, or there are both mixtures and a norm of their weights; or ``thetas`` says
            the structure of a group that there is not, or leaves none to the trial.
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
    base_depth: Whole | None = None
    weight_norm: Flag = False
    mixture: Mixture | None = None
    thetas: GroupThetas | None = None
    data_seed: Whole | None = None

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
        if self.base_depth is not None:
            check_whole("base_depth", self.base_depth, 1, 96)
        if self.data_seed is not None:
            check_whole("data_seed", self.data_seed, 0, 2**63 - 1)
        if self.weight_norm and self.mixture is not None:
            raise FieldError("weight_norm", expected="false where there is a mixture", got=True)
        if not set(self.group_thetas) < set(self.groups):
            expected = f"structures of some, but not all, groups of the model's layers, {' and '.join(self.groups)}"
            raise FieldError("thetas", expected=expected, got=list(self.group_thetas))

    @property
    def plain(self) -> Self:
        """The same model of plain layers: its dense form is what every structure is compared with."""
        return replace(self, weight_norm=False, mixture=None, thetas=None)

    @property
    def tuned_on(self) -> Self:
        """The proxy whose dense model, at ``base_width``, the learning rate is tuned on."""
        return replace(self.plain, depth=self.base_depth or self.depth, base_depth=None, data_seed=None)

    @property
    def branch_scale(self) -> float:
        """What the residual branches are multiplied by."""
        return branch_scale(self.depth, self.base_depth or self.depth)

    @property
    def dense_macs(self) -> int:
        """MACs per example of the plain dense model of ``dense_width``: what every structure may cost."""
        return self.plain.cost(NAMED["dense"], self.dense_width).macs

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

    @property
    def groups(self) -> tuple[GroupName, ...]:
        """The groups that the replaceable layers form."""
        return tuple(dict.fromkeys(layer.group for layer in self.layers(self.width_step)))

    @property
    def group_thetas(self) -> Mapping[GroupName, Theta]:
        """The structures of the groups that do not have that of the trial."""
        return self.thetas.given if self.thetas else {}

    def theta_of(self, group: GroupName, theta: Theta) -> Theta:
        """The structure of the layers of a group, in the model of structure ``theta``."""
        return self.group_thetas.get(group, theta)

    @abstractmethod
    def layers(self, width: int) -> tuple[LayerShape, ...]:
        """The replaceable layers of the model."""

    @abstractmethod
    def fixed_cost(self, width: int) -> ModelCost:
        """What the model costs outside of the replaceable layers."""

    def cost(self, theta: Theta, width: int) -> ModelCost:
        """Parameters and MACs per example of the model whose layers have the structure ``theta``."""

        def one(layer: LayerShape) -> ModelCost:
            own = self.theta_of(layer.group, theta)
            cost = layer_cost(own, layer.d_in, layer.d_out)
            gains = 2 if self.weight_norm and not is_dense(own, layer.d_in, layer.d_out) else 0
            return ModelCost(params=cost.params + gains, macs=cost.macs)

        return self._cost(width, one)

    def ideal_macs(self, theta: Theta, width: int) -> int:
        """About the MACs of ``cost``: those of layers whose axes could have any size."""

        def one(layer: LayerShape) -> ModelCost:
            own = self.theta_of(layer.group, theta)
            return ModelCost(params=0, macs=round(ideal_macs(own, layer.d_in, layer.d_out)))

        return self._cost(width, one).macs

    def padding(self, theta: Theta, width: int) -> float:
        """The share of the MACs of the replaceable layers that goes into padding: see ``padded_macs``."""

        def padded(layer: LayerShape) -> ModelCost:
            return ModelCost(params=0, macs=padded_macs(self.theta_of(layer.group, theta), layer.d_in, layer.d_out))

        others = self._cost(width, lambda _: ModelCost(params=0, macs=0)).macs
        return (self._cost(width, padded).macs - others) / (self.cost(theta, width).macs - others)

    def _cost(self, width: int, one: Callable[[LayerShape], ModelCost]) -> ModelCost:
        """That of the model whose layers, or their experts, cost ``one`` each."""
        fixed = self.fixed_cost(width)
        mixed = self.mixture.cost if self.mixture else lambda layer, cost: cost
        layers = [(layer.count, mixed(layer, one(layer))) for layer in self.layers(width)]
        return ModelCost(
            params=sum(n * cost.params for n, cost in layers) + fixed.params,
            macs=self.passes_per_example * sum(n * cost.macs for n, cost in layers) + fixed.macs,
        )

    def width_for(self, theta: Theta) -> int:
        """The width of this structure: the fixed one, or the one that costs what the dense model costs."""
        if self.width is not None:
            return self.width
        return self.width_near(theta, self.dense_macs)

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


_ROUNDING = 2.0
"""How far whole axes may take the cost of a layer from that of ideal ones, as a factor: with 2, none of 173 structures on
seven proxies gets another width than if all widths are tried; with 1.6, three do."""


@lru_cache(maxsize=4096)
def _width_near(proxy: ProxySettings, theta: Theta, target: float) -> int:
    by_ideal_cost = list[tuple[float, int]]()
    for width in proxy.candidate_widths():
        ideal = proxy.ideal_macs(theta, width)
        by_ideal_cost.append((abs(math.log(ideal / target)), width))
        if ideal > _ROUNDING**2 * target:
            break
    smallest_gap, nearest = math.inf, proxy.width_step
    for distance, width in sorted(by_ideal_cost):
        if distance > math.log(_ROUNDING) + math.log1p(smallest_gap / target):
            break
        gap = abs(proxy.cost(theta, width).macs - target)
        smallest_gap, nearest = min((smallest_gap, nearest), (gap, width))
    return nearest
