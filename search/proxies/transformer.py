"""What the proxies that train a small GPT have in common on paper: its layers and its cost."""

from abc import abstractmethod
from dataclasses import dataclass

from search.checks import Whole, check_whole
from search.proxies.base import LayerShape, ModelCost, ProxySettings

MAX_POSITIONS = 4096
"""The longest sequence that a transformer attends to."""


def block_layers(width: int, depth: int) -> tuple[LayerShape, ...]:
    """The replaceable layers of ``depth`` blocks: attention's q, k, v and output, and the two of the feed-forward block."""
    return (
        LayerShape(name="attention", d_in=width, d_out=width, count=4 * depth),
        LayerShape(name="up", d_in=width, d_out=4 * width, count=depth),
        LayerShape(name="down", d_in=4 * width, d_out=width, count=depth),
    )


def num_gains(width: int, depth: int, num_heads: int) -> int:
    """The parameters of the norms: two of each block, those of its queries and keys per head, and the last one."""
    return depth * (2 * width + 2 * (width // num_heads)) + width


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSettings(ProxySettings):
    """A GPT that predicts the next token; an example is a token, and attention is counted in its MACs."""

    num_heads: Whole

    def __post_init__(self) -> None:
        check_whole("num_heads", self.num_heads, 1, 128)
        ProxySettings.__post_init__(self)

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """How many different tokens there are."""

    @property
    @abstractmethod
    def num_positions(self) -> int:
        """How many tokens a sequence has."""

    @property
    def width_step(self) -> int:
        """Every head has the same width."""
        return self.num_heads

    @property
    def examples_per_step(self) -> int:
        """Tokens: a batch of sequences."""
        return self.batch_size * self.num_positions

    def layers(self, width: int) -> tuple[LayerShape, ...]:
        """Those of the blocks."""
        return block_layers(width, self.depth)

    def fixed_cost(self, width: int) -> ModelCost:
        """Embeddings, norms, the dense head, and attention's scores and values.

        Attention is 2 T d a token and block, without halving for causality, as the papers count.
        """
        norms = num_gains(width, self.depth, self.num_heads)
        return ModelCost(
            params=(2 * self.vocabulary_size + self.num_positions) * width + norms,
            macs=(2 * self.num_positions * self.depth + self.vocabulary_size) * width,
        )
