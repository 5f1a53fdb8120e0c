"""From the spec of a sampler to the sampler: one line per kind."""

from collections.abc import Callable, Mapping

from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler, TPESampler

from search.samplers.base import Sampler
from search.samplers.capped import Capped
from search.samplers.optuna_backed import OptunaBacked
from search.samplers.thinned import Thinned
from search.sampling import CmaEs, Gp, NsgaII, Qmc, Random, RayTune, SamplerSpec, Tpe


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


def _nsga_ii(spec: NsgaII) -> Sampler:
    # Optuna's mutation, one coordinate on average, draws every point of a space that has no other anew.
    size = spec.population
    return Thinned(
        OptunaBacked(
            lambda seed: NSGAIISampler(seed=seed, population_size=size, mutation_prob=0.2),
            worst_for_none=True,
            generation=size,
        )
    )


# What the next two stand on takes half a second to load: the runner waits for it when such a search comes, not at its start.
def _cma_es(_: CmaEs) -> Sampler:
    from search.samplers import cma_es

    return cma_es.CmaEs()


def _qmc(spec: Qmc) -> Sampler:
    from search.samplers import qmc

    return qmc.Qmc(spec.seed)


# Ray Tune takes two seconds.
def _ray_tune(spec: RayTune) -> Sampler:
    from search.samplers import ray_tune

    return Capped(first=ray_tune.RayTune(spec.searcher), then=_tpe(10), max_observed=spec.max_observed)


_MAKERS: Mapping[type, Callable[..., Sampler]] = {
    Tpe: lambda spec: _tpe(spec.startup_trials),
    Gp: _gp,
    CmaEs: _cma_es,
    NsgaII: _nsga_ii,
    Qmc: _qmc,
    RayTune: _ray_tune,
    Random: lambda _: OptunaBacked(lambda seed: RandomSampler(seed=seed), learns=False),
}
