"""The linear layers of a proxy's model: dense ones at muP's initial scale, and the factory of a structure."""

from torch import nn

from einlayers.attention import LinearFactory
from einlayers.linear import EinsumLinear
from einlayers.moe import DenseMoE, EinsumMoE
from einlayers.scaling import dense_init_std
from einlayers.taxonomy import is_dense
from einlayers.theta import Theta
from search.proxies.shapes import Mixture


def dense_linear(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Linear:
    """One matrix at muP's initial scale, or zero."""
    layer = nn.Linear(d_in, d_out, bias=False)
    nn.init.zeros_(layer.weight) if zero_init else nn.init.normal_(layer.weight, std=dense_init_std(d_in, d_out))
    return layer


def linear_factory(theta: Theta, *, weight_norm: bool = False) -> LinearFactory:
    """The factory of layers of structure ``theta``: one matrix where that is dense, two factors elsewhere, which
    ``weight_norm`` caps."""

    def structured(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
        if is_dense(theta, d_in, d_out):
            return dense_linear(d_in, d_out, zero_init=zero_init)
        return EinsumLinear(d_in, d_out, theta, bias=False, zero_init=zero_init, weight_norm=weight_norm)

    return structured


def mixture_factory(theta: Theta, mixture: Mixture) -> LinearFactory:
    """The factory of mixtures of experts of structure ``theta``, each in the place of one layer."""

    def mixed(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
        experts, chosen = mixture.num_experts, mixture.top_k
        if is_dense(theta, d_in, d_out):
            return DenseMoE(d_in, d_out, num_experts=experts, top_k=chosen, bias=False, zero_init=zero_init)
        return EinsumMoE(d_in, d_out, theta, num_experts=experts, top_k=chosen, bias=False, zero_init=zero_init)

    return mixed
