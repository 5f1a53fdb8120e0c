"""A residual MLP, one readable file: a dense layer in, pre-LN blocks of two layers, a dense layer out.

Follows the MLP of 2410.02117 (section 5, synthetic regression): blocks widen four times, the last layer of every block and
the head start at zero, and the layers of the blocks are made by a factory.
"""

# B batch, I inputs, D width, O outputs

from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.attention import LinearFactory
from einlayers.scaling import dense_init_std
from workers.models.linears import dense_linear


class Block(nn.Module):
    """A feed-forward layer of four times the width, added to the residual stream."""

    def __init__(self, width: int, linear: LinearFactory) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.up = linear(width, 4 * width)
        self.down = linear(4 * width, width, zero_init=True)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Map ``(B, D)`` to the same shape."""
        update_BD: Tensor = self.down(F.gelu(self.up(self.norm(x_BD))))
        return x_BD + update_BD


class MLP(nn.Module):
    """``outputs`` numbers of ``inputs`` numbers; ``linear`` makes the layers of the blocks."""

    def __init__(self, *, inputs: int, outputs: int, width: int, depth: int, linear: LinearFactory) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(Block(width, linear) for _ in range(depth))
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
