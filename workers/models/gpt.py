"""A small GPT for characters, one readable file: pre-LN blocks, learned positions, per-head qk-LayerNorm, no biases.

Follows the character GPT of 2410.02117 (appendix): muP attention scale, untied zero-initialised dense head, zero-initialised
last layer of every residual branch, and every layer of the blocks made of what ``Layers`` says.
"""

# B batch, T tokens, D width, V vocabulary

import torch
from torch import Tensor, nn

from workers.models.layers import Layers
from workers.models.linears import dense_linear


class Block(nn.Module):
    """Attention, then a feed-forward layer of four times the width, each added to the residual stream."""

    def __init__(self, width: int, num_heads: int, layers: Layers, *, causal: bool = True) -> None:
        super().__init__()
        self.scale = layers.branch_scale
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = layers.make_attention(width, num_heads, causal=causal)
        self.feed_forward_norm = nn.LayerNorm(width, bias=False)
        self.feed_forward = layers.make_feed_forward(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map ``(B, T, D)`` to the same shape."""
        x_BTD = torch.add(x_BTD, self.attention(self.attention_norm(x_BTD)), alpha=self.scale)
        return torch.add(x_BTD, self.feed_forward(self.feed_forward_norm(x_BTD)), alpha=self.scale)


class GPT(nn.Module):
    """Next-character logits; ``layers`` is what the blocks are made of."""

    def __init__(
        self, *, vocabulary: int, context: int, width: int, depth: int, num_heads: int, layers: Layers
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, num_heads, layers) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = dense_linear(width, vocabulary, zero_init=True)
        nn.init.normal_(self.token_embedding.weight, std=EMBEDDING_STD)
        nn.init.normal_(self.position_embedding.weight, std=EMBEDDING_STD)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits ``(B, T, V)`` of the character after each of ``(B, T)``."""
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD = self.token_embedding(tokens_BT) + self.position_embedding(positions_T)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV: Tensor = self.head(self.norm(x_BTD))
        return logits_BTV


EMBEDDING_STD = 0.02
"""Embeddings start small against the updates that Adam gives them; muP keeps this scale at every width."""
