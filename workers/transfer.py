"""muP: from the learning rate tuned once on a small dense model to that of every parameter of any other model.

Dense hidden layers and the head go with base width / width. Each factor of a structured layer goes with that times the
multiplier of its rule. Embeddings, gains, biases and layers that read the inputs keep one rate at every width. Source:
2406.06248, section 4.
"""

from dataclasses import replace

import torch
from torch import nn

from einlayers import optim
from einlayers.errors import FieldError
from einlayers.muon import Group
from einlayers.theta import NAMED
from search.proxies.registry import ProxySpec
from workers.proxies.registry import proxy_for


def param_groups(model: nn.Module, settings: ProxySpec) -> list[Group]:
    """Adam's parameter groups, one per learning rate, for a model of the proxy with these settings.

    Raises:
        FieldError: the settings leave the rate open.
    """
    if settings.base_lr is None:
        raise FieldError("base_lr", expected="the calibrated learning rate of the proxy", got=None)
    tuned_on = replace(settings, depth=settings.base_depth or settings.depth, thetas=None)
    with torch.random.fork_rng():  # of the model that the rate was tuned on, only the shapes count
        base = proxy_for(tuned_on).build(NAMED["dense"], settings.nearest_width(settings.base_width))
    return optim.param_groups(
        model,
        settings.base_lr,
        base=base,
        optimizer="adam",
        input_lr_mult=settings.input_lr_mult,
        depth_rule=settings.base_depth is not None,
    )
