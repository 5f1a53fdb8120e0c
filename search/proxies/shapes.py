"""The layers of a proxy's model on paper: their shapes, what a model costs, and mixtures of experts in their places."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from search.checks import Number, Whole, check_number, check_whole

MAX_EXPERTS = 1024
"""The largest mixture of experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """A kind of replaceable linear layer in a model: its name, its widths, how often it occurs."""

    name: str
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
        LayerShape(name="up", d_in=width, d_out=4 * width, count=depth),
        LayerShape(name="down", d_in=4 * width, d_out=width, count=depth),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Mixtures of ``num_experts`` experts, of which each token takes ``top_k``; every expert has the structure of the trial.

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
        if not whole and layer.name not in ("up", "down"):
            return one
        gate = self.num_experts * layer.d_in if whole or layer.name == "up" else 0
        return ModelCost(params=self.num_experts * one.params + gate, macs=self.top_k * one.macs + gate)
