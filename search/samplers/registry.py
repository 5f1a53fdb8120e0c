"""From the spec of a sampler to the sampler: one line per kind."""

from collections.abc import Callable, Mapping

from optuna.samplers import RandomSampler, TPESampler

from search.samplers.base import Sampler
from search.samplers.optuna_backed import OptunaBacked
from search.spec import Random, SamplerSpec, Tpe

_MAKERS: Mapping[type, Callable[..., Sampler]] = {
    Tpe: lambda spec: OptunaBacked(lambda seed: TPESampler(seed=seed, n_startup_trials=spec.startup_trials)),
    Random: lambda spec: OptunaBacked(lambda seed: RandomSampler(seed=seed), learns=False),
}


def make_sampler(spec: SamplerSpec) -> Sampler:
    """The sampler that ``spec`` describes."""
    return _MAKERS[type(spec)](spec)
