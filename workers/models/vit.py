"""A vision transformer, one readable file: patches, learned positions, blocks whose attention looks everywhere, one class.

Follows the ViT of 2406.06248 (section 5), with the blocks of our GPT; the patches' features are averaged before the head.
"""

# B batch, R rows, S columns, C channels, T patches, I numbers per patch, D width, O classes

import torch
from torch import Tensor, nn

from einlayers.scaling import dense_init_std
from workers.models.gpt import EMBEDDING_STD, Block
from workers.models.layers import Layers
from workers.models.linears import dense_linear


class ViT(nn.Module):
    """Logits of the classes of square images; ``layers`` is what the blocks are made of."""

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        classes: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        layers: Layers,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        inputs = patch_size**2 * channels
        self.input = nn.Linear(inputs, width)
        self.position = nn.Parameter(torch.empty((size // patch_size) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, layers, causal=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = dense_linear(width, classes, zero_init=True)
        nn.init.normal_(self.input.weight, std=dense_init_std(inputs, width))
        nn.init.zeros_(self.input.bias)
        nn.init.normal_(self.position, std=EMBEDDING_STD)

    def forward(self, images_BRSC: Tensor) -> Tensor:
        """Map ``(B, R, S, C)`` to ``(B, O)``."""
        x_BTD = self.input(self._patches(images_BRSC)) + self.position
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BO: Tensor = self.head(self.norm(x_BTD).mean(dim=1))
        return logits_BO

    def _patches(self, images_BRSC: Tensor) -> Tensor:
        """Cut into ``(B, T, I)``."""
        p = self.patch_size
        return images_BRSC.unfold(1, p, p).unfold(2, p, p).flatten(3).flatten(1, 2)
