"""The query parameters that filter trials, read once for every list of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query

from einlayers.taxonomy import Family
from search.states import TrialState
from service.listings import METRICS, Filters, Metric
from service.models import Origin

Bound = Annotated[float | None, Query(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameters:
    """What any list of trials can be filtered by; a bound is inclusive."""

    family: Family | None = None
    origin: Origin | None = None
    proxy: Annotated[str | None, Query(max_length=32, pattern="^[a-z_]+$")] = None
    loss_min: Bound = None
    loss_max: Bound = None
    omega_min: Bound = None
    omega_max: Bound = None
    psi_min: Bound = None
    psi_max: Bound = None
    nu_min: Bound = None
    nu_max: Bound = None
    params_min: Bound = None
    params_max: Bound = None
    macs_min: Bound = None
    macs_max: Bound = None
    latency_min: Bound = None
    latency_max: Bound = None
    peak_memory_min: Bound = None
    peak_memory_max: Bound = None
    seconds_min: Bound = None
    seconds_max: Bound = None
    include_excluded: bool = False

    def filters(self, state: TrialState | None = None) -> Filters:
        """The same, as the lists take it."""
        return Filters(
            state=state,
            family=self.family,
            origin=self.origin,
            proxy_kind=self.proxy,
            at_least=self._bounds("min"),
            at_most=self._bounds("max"),
            include_excluded=self.include_excluded,
        )

    def _bounds(self, end: str) -> Mapping[Metric, float]:
        bounds = {metric: getattr(self, f"{metric}_{end}") for metric in METRICS}
        return {metric: bound for metric, bound in bounds.items() if bound is not None}


def _structure_filters(parameters: Annotated[_Parameters, Depends()]) -> Filters:
    return parameters.filters()


def _trial_filters(parameters: Annotated[_Parameters, Depends()], state: TrialState | None = None) -> Filters:
    return parameters.filters(state)


StructureFilters = Annotated[Filters, Depends(_structure_filters)]
TrialFilters = Annotated[Filters, Depends(_trial_filters)]
