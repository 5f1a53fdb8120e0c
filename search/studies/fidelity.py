"""Fidelity: whether a proxy ranks structures reproducibly, and truthfully."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from einlayers.errors import FieldError
from einlayers.theta import NAMED, Theta
from search.checks import Whole, check_whole
from search.plan import Run
from search.proxies.registry import ProxySpec
from search.studies.base import Part, StudySettings, check_structures
from search.studies.estimates import Agreement, Correlation
from search.studies.structures import REFERENCE_SET, RandomStructures

Scoring = Literal["equal_compute", "equal_steps"]

REFERENCE_FACTOR = 4.0
"""How many times the compute of the proxy its reference has by default."""

_BRACKET, _REFERENCE_BRACKET = 2.0, 4 / 3
"""How far the MACs of narrower and wider models are from those of a structure, as factors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityStudy(StudySettings):
    """Train structures from several seeds on a proxy, on narrower and wider models, and on a reference.

    What is measured against the reference is whether the order is the truth, so its own choices must be beyond doubt: by
    default it is the proxy at four times the compute and at widths that suit each structure, whatever the proxy does. With
    ``reference_neighbours`` two more widths of each are trained on it, of three quarters and of four thirds of the MACs, and
    the best of the three counts: where few widths are left to a structure, how its axes come out at one is a matter of luck.
    Random structures are those that are models of their own on the proxy.
    ``scoring`` as equal steps, or a fixed ``width`` of the proxy, are what a careless search would do: a check that
    accepts them is none.
    """

    kind: Literal["fidelity_study"] = "fidelity_study"
    structures: tuple[Theta, ...] | RandomStructures = REFERENCE_SET
    replicates: Whole = 4
    neighbours: bool = True
    reference: ProxySpec | None = None
    reference_replicates: Whole = 2
    reference_neighbours: bool = False
    scoring: Scoring = "equal_compute"

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        StudySettings.__post_init__(self)
        check_structures(self.thetas, at_least=3)
        check_whole("replicates", self.replicates, 2, 100)
        check_whole("reference_replicates", self.reference_replicates, 1, 100)
        if self.scoring == "equal_steps" and self.proxy.width is None:
            raise FieldError("scoring", expected="equal_compute, or a proxy with a width for all", got=self.scoring)

    @property
    def thetas(self) -> tuple[Theta, ...]:
        """The structures, drawn where they are random."""
        return self.structures.on(self.proxy) if isinstance(self.structures, RandomStructures) else self.structures

    @property
    def truth(self) -> ProxySpec:
        """The proxy whose order counts as true: the reference, or the default one."""
        return self.reference or reference_of(self.proxy)

    def parts(self) -> Mapping[str, Part]:
        """``proxy`` and ``reference``; where they are wanted, ``neighbours`` and ``reference_neighbours``, a narrower and a
        wider model of each structure."""
        parts = {
            "proxy": Part(proxy=self.proxy, runs=self._runs(self.thetas, self.replicates), seed=self.seed),
            "reference": Part(
                proxy=self.truth,
                runs=tuple(Run(theta=theta) for _ in range(self.reference_replicates) for theta in self.thetas),
                seed=self.seed + 1,
            ),
        }
        if self.neighbours:
            parts["neighbours"] = self._beside(self.proxy, _BRACKET, seed=self.seed + 2)
        if self.reference_neighbours:
            parts["reference_neighbours"] = self._beside(self.truth, _REFERENCE_BRACKET, seed=self.seed + 3)
        return parts

    def _beside(self, proxy: ProxySpec, factor: float, *, seed: int) -> Part:
        runs = tuple(Run(theta=theta, width=width) for theta in self.thetas for width in beside(proxy, theta, factor))
        return Part(proxy=proxy, runs=runs, seed=seed)

    def _runs(self, thetas: Sequence[Theta], times: int) -> tuple[Run, ...]:
        return tuple(Run(theta=theta, train_flops=self._train_flops(theta)) for _ in range(times) for theta in thetas)

    def _train_flops(self, theta: Theta) -> float | None:
        """None where every structure has the compute of the proxy; else that of as many steps as dense takes."""
        if self.scoring == "equal_compute":
            return None
        proxy = self.proxy
        dense, own = (proxy.cost(each, proxy.width_for(each)).macs for each in (NAMED["dense"], theta))
        return 6.0 * own * proxy.examples_per_step * proxy.num_steps(dense)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureFidelity:
    """A structure of a fidelity study: losses are means over its seeds, ``sd`` is that of the log of the loss.

    ``bracketed``: its width beats a narrower and a wider model; None where those were not trained, False where a
    neighbour did better, so that its loss is not that of its best width.
    """

    theta: Theta
    width: int
    loss: float | None
    sd: float | None
    reference_loss: float | None
    cpu_seconds: float
    bracketed: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """What a fidelity study has found.

    ``between_seeds``: how well single trials agree. ``between_means``: Spearman between means over so many replicates.
    ``between_budgets``: the order at a quarter of the compute against the order at its end. ``between_widths``: the order
    among narrower models against that among wider ones. ``against_reference``: the order of the means against the truth;
    ``single_against_reference``: of a single trial each, on average. ``top_overlap``: how many of the best four are among
    the best four from every seed. ``sd``: of the log of the loss, between seeds. ``compute_spread``: the most training FLOPs
    that a structure had, over the least. ``truthful``: whether the order of the means agrees with the truth at least as well
    as ``TRUTHFUL`` says, and comes from equal compute: an order in which more compute wins may be the true one for some
    structures, by luck.
    """

    kind: Literal["fidelity_study"] = "fidelity_study"
    structures: tuple[StructureFidelity, ...]
    between_seeds: Agreement
    between_means: Mapping[int, float]
    between_budgets: Correlation
    between_widths: Correlation | None
    against_reference: Correlation
    single_against_reference: float
    top_overlap: int
    sd: float
    compute_spread: float = 1.0
    cpu_seconds: float
    highest_cpu_seconds: float
    truthful: bool

    TRUTHFUL: ClassVar[float] = 0.75
    """The lowest Spearman against the reference that counts as truthful."""

    EQUAL_COMPUTE: ClassVar[float] = 1.1
    """The highest spread that counts as equal compute."""


def reference_of(proxy: ProxySpec) -> ProxySpec:
    """The same task at ``REFERENCE_FACTOR`` times the compute, each structure at the width that costs what dense costs at
    its best: the best number of MACs goes with the root of the compute (2203.15556)."""
    macs = math.sqrt(REFERENCE_FACTOR)
    wider = proxy.nearest_width(proxy.dense_width * math.sqrt(macs))
    return replace(proxy, width=None, dense_width=wider, train_flops=REFERENCE_FACTOR * proxy.train_flops)


def beside(proxy: ProxySpec, theta: Theta, factor: float) -> tuple[int, int]:
    """The widths at about 1/factor and factor times the MACs that a structure has on the proxy: what brackets its width."""
    width, step = proxy.width_for(theta), proxy.width_step
    macs = proxy.cost(theta, width).macs
    narrower, wider = proxy.width_near(theta, macs / factor), proxy.width_near(theta, macs * factor)
    return max(step, min(narrower, width - step)), max(wider, width + step)
