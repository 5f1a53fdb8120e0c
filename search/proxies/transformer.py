"""What the proxies whose models have attention have in common on paper: the layers of their blocks, and their cost."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

from einlayers.families import ALIGNED_IN, ALIGNED_OUT, head_aligned_dims
from einlayers.taxonomy import cost
from search.checks import Whole, check_whole
from search.proxies.base import ProxySettings
from search.proxies.shapes import LayerShape, ModelCost, feed_forward_layers

MAX_POSITIONS = 4096
"""The longest sequence that a transformer attends to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSettings(ProxySettings):
    """A model of blocks, each attention and then a feed-forward layer.

    ``head_aligned_rank`` makes attention's four layers BTTs of this rank whose blocks are the heads, whatever the structure
    of the other layers (2410.02117, figure 10).
    """

    num_heads: Whole
    head_aligned_rank: Whole | None = None

    def __post_init__(self) -> None:
        check_whole("num_heads", self.num_heads, 1, 128)
        if self.head_aligned_rank is not None:
            check_whole("head_aligned_rank", self.head_aligned_rank, 1, 4096)
        ProxySettings.__post_init__(self)

    @property
    def plain(self) -> Self:
        """See ``ProxySettings.plain``."""
        return replace(super(AttentionSettings, self).plain, head_aligned_rank=None)

    @property
    def width_step(self) -> int:
        """Every head has the same width."""
        return self.num_heads

    def layers(self, width: int) -> tuple[LayerShape, ...]:
        """Attention's q, k, v and output, unless they are aligned with the heads, and the two of the feed-forward blocks."""
        attention = LayerShape(name="attention", group="attention", d_in=width, d_out=width, count=4 * self.depth)
        feed_forward = feed_forward_layers(width, self.depth)
        return feed_forward if self.head_aligned_rank else (attention, *feed_forward)

    def blocks_cost(self, width: int, num_positions: int) -> ModelCost:
        """What the blocks cost a token outside of the replaceable layers: norms, attention's scores and values, its layers
        where they are aligned with the heads, and the last norm.

        Attention is 2 T d a token and block, without halving for causality, as the papers count.
        """
        norms = self.depth * (2 * width + 2 * (width // self.num_heads)) + width
        aligned = self._aligned_cost(width)
        return ModelCost(
            params=norms + self.depth * aligned.params,
            macs=self.depth * (2 * num_positions * width + aligned.macs),
        )

    def _aligned_cost(self, width: int) -> ModelCost:
        """Of the four layers of a block that are aligned with the heads."""
        if self.head_aligned_rank is None:
            return ModelCost(params=0, macs=0)
        n, rank = self.num_heads, self.head_aligned_rank
        into, out = (cost(head_aligned_dims(n, width // n, case, rank)) for case in (ALIGNED_IN, ALIGNED_OUT))
        gains = 4 * 2 if self.weight_norm else 0
        return ModelCost(params=3 * into.params + out.params + gains, macs=3 * into.macs + out.macs)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSettings(AttentionSettings):
    """A GPT that predicts the next token; an example is a token, and attention is counted in its MACs."""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """How many different tokens there are."""

    @property
    @abstractmethod
    def num_positions(self) -> int:
        """How many tokens a sequence has."""

    @property
    def examples_per_step(self) -> int:
        """Tokens: a batch of sequences."""
        return self.batch_size * self.num_positions

    def fixed_cost(self, width: int) -> ModelCost:
        """Embeddings, the dense head, and what the blocks have beside their replaceable layers."""
        blocks = self.blocks_cost(width, self.num_positions)
        return ModelCost(
            params=(2 * self.vocabulary_size + self.num_positions) * width + blocks.params,
            macs=self.vocabulary_size * width + blocks.macs,
        )
