"""A theta on a proxy: everything that is known about it before training, and the identity that tells it from others."""

import hashlib
from dataclasses import dataclass

from einlayers.dims import Dims, resolve
from einlayers.taxonomy import Family, Taxonomy, classify, taxonomy
from einlayers.theta import Theta
from search.proxies.registry import ProxySpec
from search.proxies.shapes import ModelCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A structure as a proxy will train it. Two with the same ``digest`` are one model and are not trained twice."""

    theta: Theta
    family: Family
    taxonomy: Taxonomy
    width: int
    cost: ModelCost
    padding: float
    digest: str


def structure_of(theta: Theta, proxy: ProxySpec) -> Structure:
    """The structure of ``theta`` at the width that ``proxy`` gives it."""
    width = proxy.width_for(theta)
    return Structure(
        theta=theta,
        family=classify(theta),
        taxonomy=taxonomy(theta),
        width=width,
        cost=proxy.cost(theta, width),
        padding=proxy.padding(theta, width),
        digest=_digest(theta, proxy, width),
    )


def layer_dims(theta: Theta, proxy: ProxySpec, width: int) -> dict[str, Dims]:
    """The axis sizes of each replaceable layer, by the layer's name."""
    return {layer.name: resolve(theta, layer.d_in, layer.d_out) for layer in proxy.layers(width)}


def _digest(theta: Theta, proxy: ProxySpec, width: int) -> str:
    # Dense layers are one matrix whatever the theta that says so; the rest is told apart by its integer axes alone,
    # in the canonical form, because a theta and its swap are the same operators.
    dims = "dense" if theta.is_dense else [d.axes for d in layer_dims(theta.canonical(), proxy, width).values()]
    return hashlib.sha256(f"{width} {dims}".encode()).hexdigest()[:32]
