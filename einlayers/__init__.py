"""Structured linear layers written as einsums: values (theta, dims, taxonomy, scaling) without torch, layers with it.

The names below are the public face; they load when they are first used, so that values cost no import of torch.
``einlayers.taxonomy`` and ``einlayers.spectrum`` are modules, whose functions of the same names are imported from them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from einlayers.attention import Attention, head_aligned_attention
    from einlayers.btt import BTTLinear, btt_layer
    from einlayers.coordinates import coordinate_check
    from einlayers.dims import Dims, resolve
    from einlayers.errors import FieldError
    from einlayers.fused.switch import use_fused_kernels
    from einlayers.linear import EinsumLinear
    from einlayers.moe import DenseMoE, EinsumMoE, FeedForwardMoE, LowRankMoE
    from einlayers.muon import Muon
    from einlayers.optim import param_groups
    from einlayers.projection import project
    from einlayers.routing import auxiliary_loss
    from einlayers.scaling import branch_scale, factor_rules
    from einlayers.surgery import densify, replace_linears
    from einlayers.taxonomy import classify, cost, layer_cost, rank_bound
    from einlayers.theta import NAMED, Theta

_HOMES = {
    "einlayers.attention": ("Attention", "head_aligned_attention"),
    "einlayers.btt": ("BTTLinear", "btt_layer"),
    "einlayers.coordinates": ("coordinate_check",),
    "einlayers.dims": ("Dims", "resolve"),
    "einlayers.errors": ("FieldError",),
    "einlayers.fused.switch": ("use_fused_kernels",),
    "einlayers.linear": ("EinsumLinear",),
    "einlayers.moe": ("DenseMoE", "EinsumMoE", "FeedForwardMoE", "LowRankMoE"),
    "einlayers.muon": ("Muon",),
    "einlayers.optim": ("param_groups",),
    "einlayers.projection": ("project",),
    "einlayers.routing": ("auxiliary_loss",),
    "einlayers.scaling": ("branch_scale", "factor_rules"),
    "einlayers.surgery": ("densify", "replace_linears"),
    "einlayers.taxonomy": ("classify", "cost", "layer_cost", "rank_bound"),
    "einlayers.theta": ("NAMED", "Theta"),
}

__all__ = [
    "NAMED",
    "Attention",
    "BTTLinear",
    "DenseMoE",
    "Dims",
    "EinsumLinear",
    "EinsumMoE",
    "FeedForwardMoE",
    "FieldError",
    "LowRankMoE",
    "Muon",
    "Theta",
    "auxiliary_loss",
    "branch_scale",
    "btt_layer",
    "classify",
    "coordinate_check",
    "cost",
    "densify",
    "factor_rules",
    "head_aligned_attention",
    "layer_cost",
    "param_groups",
    "project",
    "rank_bound",
    "replace_linears",
    "resolve",
    "use_fused_kernels",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
