"""From the spec of a sampler to the sampler: one line per kind."""

from collections.abc import Callable, Mapping

from optuna.samplers import GPSampler, RandomSampler, TPESampler

from search.samplers.base import Sampler
from search.samplers.capped import Capped
from search.samplers.cma_es import CmaEs
from search.samplers.optuna_backed import OptunaBacked
from search.samplers.qmc import Qmc
from search.samplers.thinned import Thinned
from search.spec import CmaEs as CmaEsSpec
from search.spec import Gp, Random, SamplerSpec, Tpe
from search.spec import Qmc as QmcSpec


def make_sampler(spec: SamplerSpec) -> Sampler:
    """The sampler that ``spec`` describes."""
    return _MAKERS[type(spec)](spec)


def _tpe(startup_trials: int) -> Sampler:
    return Thinned(OptunaBacked(lambda seed: TPESampler(seed=seed, n_startup_trials=startup_trials)))


def _gp(spec: Gp) -> Sampler:
    # Losses are noisy: the process must not pass through every one of them.
    gp = OptunaBacked(
        lambda seed: GPSampler(seed=seed, n_startup_trials=spec.startup_trials, deterministic_objective=False),
        worst_for_none=True,
    )
    return Capped(first=gp, then=_tpe(spec.startup_trials), max_observed=spec.max_observed)


_MAKERS: Mapping[type, Callable[..., Sampler]] = {
    Tpe: lambda spec: _tpe(spec.startup_trials),
    Gp: _gp,
    CmaEsSpec: lambda _: CmaEs(),
    QmcSpec: lambda spec: Qmc(spec.seed),
    Random: lambda _: OptunaBacked(lambda seed: RandomSampler(seed=seed), learns=False),
}
