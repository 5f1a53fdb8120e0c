"""From the spec of a sampler to the sampler: one line per kind."""

from collections.abc import Callable, Mapping

from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

from search.cube import Cube
from search.samplers.base import Sampler
from search.samplers.capped import Capped
from search.samplers.optuna_backed import OptunaBacked
from search.samplers.thinned import Thinned
from search.sampling import CmaEs, Gp, NsgaII, Qmc, Random, RayTune, SamplerSpec, Tpe


def make_sampler(spec: SamplerSpec, cube: Cube | None = None) -> Sampler:
    """The sampler that ``spec`` describes, for points of ``cube``; without one, points are nothing but points."""
    return _gp(spec, cube) if isinstance(spec, Gp) else _MAKERS[type(spec)](spec)


def _tpe(startup_trials: int) -> Sampler:
    return Thinned(OptunaBacked(lambda seed: TPESampler(seed=seed, n_startup_trials=startup_trials)))


def _gp(spec: Gp, cube: Cube | None) -> Sampler:
    from search.samplers import gp

    first = gp.Gp(spec.startup_trials, cube.describe, cube.landmarks) if cube else gp.Gp(spec.startup_trials)
    return Capped(first=first, then=_tpe(spec.startup_trials), max_observed=spec.max_observed)


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


# What these stand on takes up to half a second to load: the runner waits for it when such a search comes, not at its start.
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
    CmaEs: _cma_es,
    NsgaII: _nsga_ii,
    Qmc: _qmc,
    RayTune: _ray_tune,
    Random: lambda _: OptunaBacked(lambda seed: RandomSampler(seed=seed), learns=False),
}
