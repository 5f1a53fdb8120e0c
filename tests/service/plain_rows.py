"""Searches and trials written straight into their tables, with any values: lists and rankings do not ask how they came."""

from datetime import UTC, datetime
from typing import Any

from einlayers.theta import NAMED
from search.proxies.identity import digest
from search.proxies.registry import ProxySpec
from search.spec import SearchSpec
from search.states import SearchState, StudyState, TrialState
from search.studies.estimates import Agreement, Correlation, Estimate
from search.studies.fidelity import Fidelity, FidelityStudy
from service.models import Origin, Search, Study, Trial
from tests.rows import SPEC

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def plain_search(identifier: str, spec: SearchSpec = SPEC, **values: Any) -> Search:
    """A search that runs since noon, but for these values."""
    defaults = {"owner": "local", "state": SearchState.RUNNING, "created_at": NOON, "state_since": NOON}
    columns = {**defaults, "proxy_kind": spec.proxy.kind, "task": "task", "name": spec.name, **values}
    return Search(id=identifier, spec=spec, **columns)


def plain_trial(search_id: str, number: int, **values: Any) -> Trial:
    """A trial of a structure of its own that completed at noon, but for these values."""
    columns = {
        "replicate": 0,
        "origin": Origin.SEARCH,
        "theta": NAMED["btt"],
        "family": "btt",
        "width": 8,
        "digest": f"{number:032x}",
        **{"omega": 0.0, "psi": 1.0, "nu": 0.5, "params": 1, "macs": 1},
        **{"train_flops": 1e6, "base_lr": 0.005, "seed": number, "history_size": number},
        **{"state": TrialState.COMPLETED, "loss": 1.0, "seconds": 1.0},
        **{"changed": 0, "alone": False, "created_at": NOON, "state_since": NOON},
        **values,
    }
    return Trial(id=f"{search_id}-{number}", search_id=search_id, number=number, **columns)


def plain_fidelity(identifier: str, proxy: ProxySpec, sd: float) -> Study:
    """A fidelity study that has found this noise between the seeds of a proxy, and nothing else worth telling."""
    whole = Estimate(value=1.0, low=1.0, high=1.0)
    agreement = Agreement(spearman=whole, lowest_spearman=1.0, kendall=whole, num_structures=3, num_replicates=2)
    finding = Fidelity(
        structures=(),
        between_seeds=agreement,
        between_means={1: 1.0},
        between_budgets=Correlation(spearman=whole, kendall=whole),
        between_widths=None,
        against_reference=Correlation(spearman=whole, kendall=whole),
        single_against_reference=1.0,
        top_overlap=4,
        sd=sd,
        cpu_seconds=1.0,
        highest_cpu_seconds=1.0,
        truthful=True,
    )
    asked = {"kind": "fidelity_study", "name": "f", "owner": "local", "spec": FidelityStudy(name="f", proxy=proxy)}
    found = {"state": StudyState.COMPLETED, "finding": finding, "created_at": NOON, "finished_at": NOON}
    return Study(id=identifier, task="task", proxy=digest(proxy), **asked, **found)
