"""What all studies have in common: measurements that are planned before the first training starts.

A study is a few plans, each on a proxy of its own, carried out as searches like any other, and an analysis of what came of
them. The plans and the analysis (``search.analysis``) are pure; the service does the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from einlayers.errors import FieldError
from einlayers.theta import Theta
from search.checks import Number, Whole, check_number, check_whole
from search.plan import Plan, Run
from search.proxies.char_lm import CharLM
from search.proxies.registry import ProxySpec
from search.spec import Budget, Resources, SearchSpec
from search.trial import Coordinates, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A plan of a study: runs of one proxy, from seeds that follow from ``seed``."""

    proxy: ProxySpec
    runs: tuple[Run, ...]
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A run as it ended; its loss is infinite where the model could not be trained that way."""

    run: Run
    width: int
    params: int
    macs: int
    train_flops: float
    base_lr: float
    loss: float
    curve: Sequence[Report]
    cpu_seconds: float
    coordinates: Mapping[str, Coordinates] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings(ABC):
    """A study as it is asked for: what is measured of which proxy, from which seeds, how many trials at once.

    Raises:
        FieldError: a value is outside its range.
    """

    kind: str
    name: str
    proxy: ProxySpec = field(default_factory=CharLM)
    seed: Whole = 0
    concurrency: Whole = 2
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 150 or not self.name.isprintable():
            raise FieldError("name", expected="1 to 150 printable characters", got=self.name[:300])
        check_whole("seed", self.seed, 0, 2**63 - 1)
        check_whole("concurrency", self.concurrency, 1, 1024)

    @property
    def subject(self) -> ProxySpec:
        """The proxy that the finding is about, and about all that differ from it in size and budget alone."""
        return self.proxy

    @abstractmethod
    def parts(self) -> Mapping[str, Part]:
        """The plans, by the part that each has in the analysis."""

    def searches(self) -> dict[str, SearchSpec]:
        """The searches that carry the plans out, by their parts.

        Raises:
            FieldError: a run is one that its proxy cannot train.
        """
        return {
            role: SearchSpec(
                name=f"{self.name}: {role}",
                budget=Budget(max_trials=len(part.runs)),
                proxy=part.proxy,
                sampler=Plan(runs=part.runs, seed=part.seed),
                concurrency=self.concurrency,
                resources=self.resources,
            )
            for role, part in self.parts().items()
        }


def check_structures(structures: Sequence[Theta], at_least: int) -> None:
    """Refuse too few structures, or the same one twice.

    Raises:
        FieldError: that is so.
    """
    if not at_least <= len(structures) <= 500:
        expected = f"{at_least} to 500 structures"
        raise FieldError("structures", expected=expected, got=f"{len(structures)} structures")
    if len({theta.canonical() for theta in structures}) < len(structures):
        raise FieldError("structures", expected="every structure once", got=[str(theta) for theta in structures])


def check_factors(field: str, factors: Sequence[Number]) -> None:
    """Refuse a list of factors that is empty, has one twice, or is beyond 1/64 to 64.

    Raises:
        FieldError: that is so.
    """
    if not 1 <= len(set(factors)) == len(factors) <= 32:
        raise FieldError(field, expected="1 to 32 different factors", got=factors)
    for factor in factors:
        check_number(field, factor, 1 / 64, 64)
