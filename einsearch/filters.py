"""What lists of trials can be filtered by and ordered by, as the keywords of the client's methods; bounds are inclusive."""

from collections.abc import Mapping
from typing import Literal, TypedDict

Metric = Literal["loss", "omega", "psi", "nu", "params", "macs", "latency", "peak_memory", "seconds"]


class StructureFilters(TypedDict, total=False):
    """Keywords of ``Client.structures``."""

    family: str
    origin: Literal["search", "user"]
    proxy: str
    loss_min: float
    loss_max: float
    omega_min: float
    omega_max: float
    psi_min: float
    psi_max: float
    nu_min: float
    nu_max: float
    params_min: float
    params_max: float
    macs_min: float
    macs_max: float
    latency_min: float
    latency_max: float
    peak_memory_min: float
    peak_memory_max: float
    seconds_min: float
    seconds_max: float
    include_excluded: bool
    order_by: Metric
    descending: bool


class TrialFilters(StructureFilters, total=False):
    """Keywords of ``Client.trials``."""

    state: str


def as_parameters(filters: Mapping[str, object], known: type[StructureFilters]) -> dict[str, str]:
    """The query that asks for ``filters``.

    Raises:
        TypeError: one of them is not known; the service would answer as if it had not been given.
    """
    names = known.__annotations__
    for name in filters:
        if name not in names:
            raise TypeError(f"expected filters from {', '.join(sorted(names))}; got {name!r}")
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in filters.items()
        if value is not None
    }
