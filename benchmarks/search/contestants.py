"""Who competes: the samplers of the service as it uses them, the papers' grid, and Optuna as one would use it at first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import optuna
from optuna.samplers import TPESampler
from optuna.trial import Trial

from einlayers.theta import Theta
from search.proposals import PastTrial, propose
from search.proxies.presets import PRESETS
from search.proxies.registry import ProxySpec
from search.racing import Racing
from search.samplers.registry import make_sampler
from search.sampling import CmaEs, Gp, Grid, Qmc, Random, RayTune, SamplerSpec, Tpe
from search.spec import Budget, SearchSpec

PROXY = cast(ProxySpec, PRESETS["screening"].proxy)
"""What decides which structures are one model."""

DEFAULT = SearchSpec(name="default", budget=Budget(max_trials=1)).sampler.kind
"""The one that a search uses that names none."""

RANDOM, QMC, GRID, NAIVE = "random", "qmc", "papers' grid", "Optuna's TPE on seven floats"
RACING = f"{DEFAULT}, and a race"


class Contestant(Protocol):
    """Says what to train next, given what was trained; None when it has nothing more."""

    @property
    def seeds_wanted(self) -> int:
        """How many trials a structure needs before it is said to be the best; with more than one, structures are asked for
        again."""
        ...

    def ask(self, history: Sequence[PastTrial]) -> Theta | None:
        """The next structure."""
        ...


class OfTheService:
    """Proposals as the runner makes them: no model twice, but for the contenders of a race."""

    def __init__(self, sampler: SamplerSpec, num_trials: int, racing: Racing | None = None) -> None:
        budget = Budget(max_trials=num_trials)
        self._spec = SearchSpec(name="benchmark", budget=budget, proxy=PROXY, sampler=sampler, racing=racing)

    @property
    def seeds_wanted(self) -> int:
        """See ``Contestant.seeds_wanted``."""
        return self._spec.seeds_wanted

    def ask(self, history: Sequence[PastTrial]) -> Theta | None:
        """See ``Contestant.ask``."""
        proposal = propose(self._spec, history, lambda: make_sampler(self._spec.sampler, self._spec.cube))
        return None if proposal is None else proposal.structure.theta


class Naive:
    """Optuna's defaults on seven numbers from 0 to 1, those of either side divided by their sum; rho as it comes."""

    seeds_wanted = 1

    def __init__(self, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(sampler=TPESampler(seed=seed))
        self._asked: Trial | None = None

    def ask(self, history: Sequence[PastTrial]) -> Theta | None:
        """See ``Contestant.ask``."""
        if self._asked is not None:
            self._study.tell(self._asked, history[-1].loss)
        self._asked = self._study.ask()
        weights = [self._asked.suggest_float(name, 0, 1) for name in ("a", "b", "c", "d", "e", "f", "rho")]
        sides = [[max(weight, 1e-12) for weight in side] for side in (weights[:3], weights[3:6])]
        shares = [weight / sum(side) for side in sides for weight in side]
        # Degenerate ranks are trained as what they are: a rank beyond the axes that it joins is no rank.
        return Theta.of((*shares, weights[-1])).canonical()


def _sampler(make: Callable[[int], SamplerSpec], racing: Racing | None = None) -> Callable[[int, int], Contestant]:
    return lambda seed, num_trials: OfTheService(make(seed), num_trials, racing)


CONTESTANTS: Mapping[str, Callable[[int, int], Contestant]] = {
    RANDOM: _sampler(lambda seed: Random(seed=seed)),
    GRID: _sampler(lambda seed: Grid(seed=seed)),
    NAIVE: lambda seed, _: Naive(seed),
    "gp": _sampler(lambda seed: Gp(seed=seed)),
    RACING: _sampler(lambda seed: Gp(seed=seed), Racing()),
    "tpe": _sampler(lambda seed: Tpe(seed=seed)),
    "cma-es": _sampler(lambda seed: CmaEs(seed=seed)),
    QMC: _sampler(lambda seed: Qmc(seed=seed)),
    "Ray Tune's hyperopt": _sampler(lambda seed: RayTune(searcher="hyperopt", seed=seed)),
}
"""By name; each is made from a seed, for so many trials."""
