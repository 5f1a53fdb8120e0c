"""A theta on a proxy: everything that is known about it before training, and the identity that tells it from others."""

import hashlib
from dataclasses import dataclass

from einlayers.dims import Dims, resolve
from einlayers.taxonomy import Family, Taxonomy, classify, is_dense, taxonomy
from einlayers.theta import Theta
from search.proxies.registry import ProxySpec
from search.proxies.shapes import ModelCost
from search.variant import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A structure as a proxy will train it, in the ``variant`` of the proxy's model, if any. Two with the same ``digest``
    are one model and are not trained twice. ``family`` and ``taxonomy`` are those of theta, whatever other groups have."""

    theta: Theta
    variant: Variant | None = None
    family: Family
    taxonomy: Taxonomy
    width: int
    cost: ModelCost
    padding: float
    digest: str

    def on(self, proxy: ProxySpec) -> ProxySpec:
        """What it is trained on: the proxy, or the variant of it."""
        return proxy if self.variant is None else self.variant.on(proxy)


def structure_of(theta: Theta, proxy: ProxySpec, variant: Variant | None = None) -> Structure:
    """The structure of ``theta``, in a variant of the proxy's model, at the width that ``proxy`` gives it.

    Raises:
        FieldError: the proxy has no such variant.
    """
    model = proxy if variant is None else variant.on(proxy)
    width = model.width_for(theta)
    return Structure(
        theta=theta,
        variant=variant,
        family=classify(theta),
        taxonomy=taxonomy(theta),
        width=width,
        cost=model.cost(theta, width),
        padding=model.padding(theta, width),
        digest=_digest(theta, model, width, usual=proxy),
    )


def layer_dims(theta: Theta, proxy: ProxySpec, width: int) -> dict[str, Dims]:
    """The axis sizes of each replaceable layer, by the layer's name."""
    return {
        layer.name: resolve(proxy.theta_of(layer.group, theta), layer.d_in, layer.d_out)
        for layer in proxy.layers(width)
    }


def _digest(theta: Theta, model: ProxySpec, width: int, *, usual: ProxySpec) -> str:
    # Dense layers are one matrix whatever the theta that says so; the rest is told apart by its integer axes alone,
    # in the canonical form, because a theta and its swap are the same operators.
    thetas = [(layer, model.theta_of(layer.group, theta)) for layer in model.layers(width)]
    forms = [
        "dense"
        if is_dense(own, layer.d_in, layer.d_out)
        else str(resolve(own.canonical(), layer.d_in, layer.d_out).axes)
        for layer, own in thetas
    ]
    dims = "dense" if set(forms) == {"dense"} else f"[{', '.join(forms)}]"
    text = f"{width} {dims}"
    if model.mixture is not None and model.mixture != usual.mixture:
        text += f" {model.mixture.top_k} of {model.mixture.num_experts}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
