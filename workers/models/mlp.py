"""A residual MLP, one readable file: a dense layer in, pre-LN blocks of two layers, a dense layer out.

Follows the MLP of 2410.02117 (section 5, synthetic regression): blocks widen four times, the last layer of every block and
the head start at zero, and the layers of the blocks are made of what ``Layers`` says.
"""

# B batch, I inputs, D width, O outputs

import torch
from torch import Tensor, nn

from einlayers.scaling import dense_init_std
from workers.models.layers import Layers
from workers.models.linears import dense_linear


class Block(nn.Module):
    """A feed-forward layer of four times the width, added to the residual stream."""

    def __init__(self, width: int, layers: Layers) -> None:
        super().__init__()
        self.scale = layers.branch_scale
        self.norm = nn.LayerNorm(width, bias=False)
        self.feed_forward = layers.make_feed_forward(width)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Map ``(B, D)`` to the same shape."""
        return torch.add(x_BD, self.feed_forward(self.norm(x_BD)), alpha=self.scale)


class MLP(nn.Module):
    """``outputs`` numbers of ``inputs`` numbers; ``layers`` is what the blocks are made of."""

    def __init__(self, *, inputs: int, outputs: int, width: int, depth: int, layers: Layers) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(Block(width, layers) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = dense_linear(width, outputs, zero_init=True)
        nn.init.normal_(self.input.weight, std=dense_init_std(inputs, width))
        nn.init.zeros_(self.input.bias)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Map ``(B, I)`` to ``(B, O)``."""
        x_BD = self.input(x_BI)
        for block in self.blocks:
            x_BD = block(x_BD)
        y_BO: Tensor = self.head(self.norm(x_BD))
        return y_BO
