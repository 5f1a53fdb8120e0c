"""muP: from the learning rate tuned once on a small dense model to that of every parameter of any other model.

Dense hidden layers and the head go with base width / width. Each factor of a structured layer goes with that times the
multiplier of its rule. Embeddings, gains and biases keep one rate at every width. Source: 2406.06248, section 4.
"""

from torch import nn

from einlayers import optim
from einlayers.attention import LinearFactory
from einlayers.linear import EinsumLinear
from einlayers.muon import Group
from einlayers.theta import Theta
from workers.models.gpt import dense_linear

INPUT_LR_MULT = 4.0
"""The rate of embeddings and gains against ``base_lr``, tuned once with it on the dense model: 1 is too slow for tables
whose rows see a gradient only when their character occurs (held-out loss 2.14 at 1, 2.02 at 4, 2.03 at 8; 1e11 FLOPs)."""


def linear_factory(theta: Theta) -> LinearFactory:
    """The factory of layers of structure ``theta``: one matrix where that is dense, two factors elsewhere."""
    if theta.is_dense:
        return dense_linear

    def structured(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
        return EinsumLinear(d_in, d_out, theta, bias=False, zero_init=zero_init)

    return structured


def param_groups(model: nn.Module, *, base_lr: float, base_width: int, width: int) -> list[Group]:
    """Adam's parameter groups, one per learning rate; ``base_lr`` is the tuned rate of the dense model at ``base_width``."""
    hidden_lr = base_lr * base_width / width
    return optim.param_groups(model, hidden_lr, input_lr_mult=INPUT_LR_MULT * base_lr / hidden_lr)
