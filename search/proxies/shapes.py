"""The layers of a proxy's model on paper: their shapes and groups, what a model costs, and mixtures of experts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from einlayers.errors import FieldError
from einlayers.theta import Theta
from search.checks import Number, Whole, check_number, check_whole

MAX_EXPERTS = 1024
"""The largest mixture of experts."""

GroupName = Literal["attention", "feed_forward"]
"""The groups of layers that can have structures of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """A kind of replaceable linear layer in a model: its name, the group of layers that share a structure, its widths, how
    often it occurs."""

    name: str
    group: GroupName
    d_in: int
    d_out: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """A whole model, or a layer: all parameters, and forward MACs per example (a token, or a row)."""

    params: int
    macs: int


def feed_forward_layers(width: int, depth: int) -> tuple[LayerShape, ...]:
    """The two layers of ``depth`` feed-forward blocks, which widen four times."""
    return (
        LayerShape(name="up", group="feed_forward", d_in=width, d_out=4 * width, count=depth),
        LayerShape(name="down", group="feed_forward", d_in=4 * width, d_out=width, count=depth),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupThetas:
    """Structures of some groups of a model's layers; the other layers have that of the trial.

    Raises:
        FieldError: there is none.
    """

    attention: Theta | None = None
    feed_forward: Theta | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not self.given:
            raise FieldError("attention", expected="a structure of attention, of feed_forward, or of both", got=None)

    @property
    def given(self) -> Mapping[GroupName, Theta]:
        """The structures, by their groups."""
        thetas: Mapping[GroupName, Theta | None] = {"attention": self.attention, "feed_forward": self.feed_forward}
        return {group: theta for group, theta in thetas.items() if theta is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Mixtures of ``num_experts`` experts, of which each token takes ``top_k``; every expert has the structure of its layer.

    ``of`` "layers": every replaceable layer is a mixture with a gate of its own, which is BTT-MoE where the structure is a
    BTT (2410.02117, section 6). ``of`` "feed_forward": every feed-forward block is one, the usual mixture (2101.03961), and
    the other layers are single. ``balance`` is the weight of the auxiliary loss that keeps the experts evenly used.

    Raises:
        FieldError: a value is outside its range.
    """

    of: Literal["layers", "feed_forward"] = "layers"
    num_experts: Whole = 8
    top_k: Whole = 2
    balance: Number = 0.01

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_whole("num_experts", self.num_experts, 1, MAX_EXPERTS)
        check_whole("top_k", self.top_k, 1, self.num_experts)
        check_number("balance", self.balance, 0, 100)

    def cost(self, layer: LayerShape, one: ModelCost) -> ModelCost:
        """A layer whose single form costs ``one``: all experts are kept, the chosen ones computed, and a gate reads what
        the layer reads, or what the first layer of its block reads."""
        whole = self.of == "layers"
        if not whole and layer.group != "feed_forward":
            return one
        gate = self.num_experts * layer.d_in if whole or layer.name == "up" else 0
        return ModelCost(params=self.num_experts * one.params + gate, macs=self.top_k * one.macs + gate)
