"""What the proxies that train a residual MLP have in common on paper: its layers and its cost."""

from abc import abstractmethod
from dataclasses import dataclass

from search.proxies.base import ProxySettings
from search.proxies.shapes import LayerShape, ModelCost, feed_forward_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class MLPSettings(ProxySettings):
    """A residual MLP: a dense layer in, blocks of two layers that widen four times, a dense layer out."""

    @property
    @abstractmethod
    def num_inputs(self) -> int:
        """How many numbers an example has."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """How many numbers the model makes of them."""

    @property
    def examples_per_step(self) -> int:
        """A batch."""
        return self.batch_size

    def layers(self, width: int) -> tuple[LayerShape, ...]:
        """The replaceable layers of the model: the two of each block."""
        return feed_forward_layers(width, self.depth)

    def fixed_cost(self, width: int) -> ModelCost:
        """The dense layers that read the inputs, with a bias, and make the outputs, and the norms."""
        matrices = (self.num_inputs + self.num_outputs) * width
        return ModelCost(params=matrices + width + (self.depth + 1) * width, macs=matrices)
