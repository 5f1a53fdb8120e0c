"""Where structures come from, as a user asks for it: the settings of every sampler. ``samplers`` are what they describe."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Discriminator

from einlayers.errors import FieldError
from search.checks import Whole, check_whole
from search.designs import GRIDS, GridName
from search.plan import Plan

RayTuneSearcher = Literal["optuna", "hyperopt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seeded:
    """What is drawn follows from this seed and the number of the proposal."""

    seed: Whole = 0

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tpe(_Seeded):
    """Tree-structured Parzen estimator: uniform at first, then where good structures were found."""

    kind: Literal["tpe"] = "tpe"
    startup_trials: Whole = 10

    def __post_init__(self) -> None:
        _Seeded.__post_init__(self)
        check_whole("startup_trials", self.startup_trials, 1, 100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gp(_Seeded):
    """Gaussian process with expected improvement over what structures are: the most from few trials. Until
    ``startup_trials`` every second one is a known design, and the others are random. An ask costs more and more, about a
    tenth of a second after 100 trials; after ``max_observed`` it goes on as ``tpe``."""

    kind: Literal["gp"] = "gp"
    startup_trials: Whole = 10
    max_observed: Whole = 200

    def __post_init__(self) -> None:
        _Seeded.__post_init__(self)
        check_whole("startup_trials", self.startup_trials, 1, 100_000)
        check_whole("max_observed", self.max_observed, 1, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class CmaEs(_Seeded):
    """Covariance matrix adaptation: a normal distribution that moves and shrinks, generation by generation."""

    kind: Literal["cma-es"] = "cma-es"


@dataclass(frozen=True, slots=True, kw_only=True)
class NsgaII(_Seeded):
    """A genetic algorithm that keeps whole Pareto fronts (Deb et al., 2002); ``population`` trials are a generation."""

    kind: Literal["nsga-ii"] = "nsga-ii"
    population: Whole = 20

    def __post_init__(self) -> None:
        _Seeded.__post_init__(self)
        check_whole("population", self.population, 2, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qmc(_Seeded):
    """Quasi-Monte Carlo: a scrambled Sobol sequence, more even than random, and as blind."""

    kind: Literal["qmc"] = "qmc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Random(_Seeded):
    """Uniform over the subspace: the baseline that every sampler has to beat."""

    kind: Literal["random"] = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayTune(_Seeded):
    """A searcher of Ray Tune: its ``optuna`` (TPE with Ray's settings), or ``hyperopt`` (the original TPE). It is told the
    whole history at every ask; after ``max_observed`` it goes on as ``tpe``."""

    kind: Literal["ray-tune"] = "ray-tune"
    searcher: RayTuneSearcher = "hyperopt"
    max_observed: Whole = 200

    def __post_init__(self) -> None:
        _Seeded.__post_init__(self)
        if self.searcher not in get_args(RayTuneSearcher):
            raise FieldError("searcher", expected=f"one of {get_args(RayTuneSearcher)}", got=self.searcher)
        check_whole("max_observed", self.max_observed, 1, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid(_Seeded):
    """No sampling: the structures of a list, in its order, that lie in the subspace: the ``named`` designs, or the 23 that
    2410.02117 compares (``papers``). Trainings follow from the seed."""

    kind: Literal["grid"] = "grid"
    designs: GridName = "papers"

    def __post_init__(self) -> None:
        _Seeded.__post_init__(self)
        if self.designs not in GRIDS:
            raise FieldError("designs", expected=f"one of {', '.join(GRIDS)}", got=self.designs)


SamplerSpec = Annotated[Tpe | Gp | CmaEs | NsgaII | Qmc | Random | RayTune | Grid | Plan, Discriminator("kind")]
