"""A structure on paper: everything that follows from a theta and two widths, without a database."""

from dataclasses import dataclass

from einlayers.dims import Dims, Policy, resolve
from einlayers.errors import FieldError
from einlayers.scaling import FactorRules, factor_rules
from einlayers.taxonomy import Cost, Family, Taxonomy, classify, layer_cost, rank_bound, taxonomy
from einlayers.theta import Theta
from service.errors import InvalidValue

_EINSUM = {
    "A_first": "z = einsum('...gba,fdrga->...fdrgb', x, A); y = einsum('...fdrgb,fergb->...fed', z, B)",
    "B_first": "z = einsum('...gba,fergb->...ferga', x, B); y = einsum('...ferga,fdrga->...fed', z, A)",
    "dense": "y = einsum('...i,oi->...o', x, W)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """All that follows from a structure and two widths; ``dense_params`` is the size of the matrix that it replaces."""

    theta: Theta
    canonical: Theta
    family: Family
    taxonomy: Taxonomy
    dims: Dims
    padding_in: float
    padding_out: float
    rank: int
    cost: Cost
    dense_params: int
    rules: FactorRules
    einsum: str


def describe(theta: Theta, d_in: int, d_out: int, policy: Policy) -> Description:
    """The description of a layer from ``d_in`` to ``d_out``.

    Raises:
        InvalidValue: a width is out of range.
    """
    try:
        dims = resolve(theta, d_in, d_out, policy)
    except FieldError as error:
        raise InvalidValue("", error) from error
    cost = layer_cost(theta, d_in, d_out, policy)
    return Description(
        theta=theta,
        canonical=theta.canonical(),
        family=classify(theta),
        taxonomy=taxonomy(theta),
        dims=dims,
        padding_in=dims.padding_in,
        padding_out=dims.padding_out,
        rank=rank_bound(dims),
        cost=cost,
        dense_params=d_in * d_out,
        rules=factor_rules(dims),
        einsum=_EINSUM[cost.order],
    )
