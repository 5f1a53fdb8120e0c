"""A small GPT for characters, one readable file: pre-LN blocks, learned positions, per-head qk-LayerNorm, no biases.

Follows the character GPT of 2410.02117 (appendix): muP attention scale, untied zero-initialised dense head, zero-initialised
last layer of every residual branch, and every linear layer but the head made by a factory.
"""

# B batch, T tokens, D width, V vocabulary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.attention import Attention, LinearFactory
from workers.models.linears import dense_linear


class Block(nn.Module):
    """Attention, then a feed-forward layer of four times the width, each added to the residual stream."""

    def __init__(self, width: int, num_heads: int, linear: LinearFactory, *, causal: bool = True) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, num_heads, linear, causal=causal)
        self.feed_forward_norm = nn.LayerNorm(width, bias=False)
        self.up = linear(width, 4 * width)
        self.down = linear(4 * width, width, zero_init=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map ``(B, T, D)`` to the same shape."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        update_BTD: Tensor = self.down(F.gelu(self.up(self.feed_forward_norm(x_BTD))))
        return x_BTD + update_BTD


class GPT(nn.Module):
    """Next-character logits; ``linear`` makes every linear layer but the head."""

    def __init__(
        self, *, vocabulary: int, context: int, width: int, depth: int, num_heads: int, linear: LinearFactory
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, num_heads, linear) for _ in range(depth))
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
