"""What a user asks for: the search, as frozen values that cannot be built wrong and that are their own JSON schema."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from einlayers.errors import FieldError
from einlayers.taxonomy import Taxonomy
from einlayers.theta import NAMED
from search.axes import TIES, Axes, SubspaceName, TieName, region_of
from search.checks import Number, Whole, check_number, check_whole
from search.cube import Cube, MixtureAxes
from search.plan import Plan
from search.proxies.char_lm import CharLM
from search.proxies.registry import ProxySpec
from search.proxies.shapes import GroupName
from search.racing import Racing
from search.sampling import CmaEs, Gp, Grid, RayTune, SamplerSpec
from search.space import SUBSPACES, Region
from search.stopping import Convergence, NoPruner, PrunerSpec
from search.structure import Structure

ObjectiveName = Literal["loss", "params", "macs", "latency", "peak_memory"]
MEASURED: frozenset[ObjectiveName] = frozenset({"latency", "peak_memory"})
"""What is known of a structure only once a step of it was measured, on the device that trains it."""

SeedName = Literal["dense", "low-rank", "kronecker", "tensor-train", "monarch", "btt"]

MAX_SOURCES = 16
"""How many earlier searches one may start from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Bounds that a proposed structure must keep, checked before any training; the seeds are exempt.

    ``padding``: the share of the MACs of the replaceable layers that goes into features that they do not have, since the
    integer axes of a structure need not multiply to the width of a layer (``ProxySettings.padding``).

    Raises:
        FieldError: a bound is not a finite number in its range, or a lower bound exceeds its upper bound.
    """

    omega_min: Number | None = None
    omega_max: Number | None = None
    psi_min: Number | None = None
    psi_max: Number | None = None
    nu_min: Number | None = None
    nu_max: Number | None = None
    params_min: Number | None = None
    params_max: Number | None = None
    macs_min: Number | None = None
    macs_max: Number | None = None
    padding_max: Number | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for metric, limit in _METRICS.items():
            low, high = self._given(metric)
            for name, bound in ((f"{metric}_min", low), (f"{metric}_max", high)):
                if bound is not None:
                    check_number(name, bound, 0, limit)
            if low is not None and high is not None and low > high:
                raise FieldError(f"{metric}_max", expected=f"at least {metric}_min, which is {low:g}", got=high)

    @property
    def bounds(self) -> Mapping[str, tuple[float, float]]:
        """The least and the greatest value of every metric that is bounded."""
        found = {}
        for metric in _METRICS:
            low, high = self._given(metric)
            if low is not None or high is not None:
                found[metric] = (-math.inf if low is None else low, math.inf if high is None else high)
        return found

    def allow(self, structure: Structure) -> bool:
        """Whether a structure keeps every bound."""
        return self._are_kept_by(metrics(structure))

    def allow_taxonomy(self, taxonomy: Taxonomy) -> bool:
        """Whether omega, psi and nu keep their bounds: known of a theta, whatever its width."""
        return self._are_kept_by({"omega": taxonomy.omega, "psi": taxonomy.psi, "nu": taxonomy.nu})

    def _are_kept_by(self, values: Mapping[str, float]) -> bool:
        bounds = self.bounds.items()
        return all(low <= values[metric] <= high for metric, (low, high) in bounds if metric in values)

    def _given(self, metric: str) -> tuple[float | None, float | None]:
        # Nobody wants padding: there is no least.
        return getattr(self, f"{metric}_min", None), getattr(self, f"{metric}_max")


_METRICS: Mapping[str, float] = {"omega": 2.0, "psi": 1.0, "nu": 2.0, "params": 1e15, "macs": 1e15, "padding": 1.0}
"""What a structure can be bounded in, and what no bound may exceed."""


def metrics(structure: Structure) -> Mapping[str, float]:
    """What constraints bound, of a structure."""
    return {
        "omega": structure.taxonomy.omega,
        "psi": structure.taxonomy.psi,
        "nu": structure.taxonomy.nu,
        "params": structure.cost.params,
        "macs": structure.cost.macs,
        "padding": structure.padding,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Where to look: a subspace, what is asked of its axes, bounds of what follows from them, known designs to try first.

    ``axes`` and ``ties`` hold for the canonical form of every proposed theta, which is the one that is stored; nothing is
    asked of the seeds.

    ``mixture``: which whole numbers of the proxy's mixture are chosen for every trial. ``groups``: which groups of layers
    get a theta of their own, of the same region. The known designs have the mixture of the proxy, and one theta for all
    layers that it leaves open. Bounds on omega, psi and nu are for the theta of the other layers, those on cost and padding
    for the whole model.

    Raises:
        FieldError: a name is unknown or there twice, or no theta of the subspace keeps ``axes`` and ``ties``.
    """

    subspace: SubspaceName = "full"
    axes: Axes = field(default_factory=Axes)
    ties: tuple[TieName, ...] = ()
    constraints: Constraints = field(default_factory=Constraints)
    seeds: tuple[SeedName, ...] = ()
    mixture: MixtureAxes | None = None
    groups: tuple[GroupName, ...] = ()

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.subspace not in SUBSPACES:
            raise FieldError("subspace", expected=f"one of {', '.join(SUBSPACES)}", got=self.subspace)
        for name in self.seeds:
            if name not in NAMED:
                raise FieldError("seeds", expected=f"names from {', '.join(NAMED)}", got=name)
        if len(set(self.seeds)) < len(self.seeds):
            raise FieldError("seeds", expected="every design once", got=self.seeds)
        for tie in self.ties:
            if tie not in TIES:
                raise FieldError("ties", expected=f"pairs from {', '.join(TIES)}", got=tie)
        if len(set(self.ties)) < len(self.ties):
            raise FieldError("ties", expected="every pair once", got=self.ties)
        region_of(self.subspace, self.axes, self.ties)
        if len(set(self.groups)) < len(self.groups):
            raise FieldError("groups", expected="every group once", got=self.groups)

    @property
    def region(self) -> Region:
        """The thetas that the subspace, the axes and the ties leave."""
        return region_of(self.subspace, self.axes, self.ties)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What makes a structure better: a lower held-out loss of its averaged weights, or less of what it costs."""

    metric: ObjectiveName = "loss"
    direction: Literal["minimize"] = "minimize"

    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When a search ends: at the first of these limits. At least one of the first three is given.

    ``max_trials`` trials; ``max_seconds`` of wall-clock time, pauses not counted, when trials that run are stopped;
    ``max_train_flops`` training FLOPs over all trials, reserved when a trial is created, so that the last one still fits;
    ``max_failures`` trials that failed by a fault of the code or of its machine.
    """

    max_trials: Whole | None = None
    max_seconds: Number | None = None
    max_train_flops: Number | None = None
    max_failures: Whole = 10

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.max_trials is not None:
            check_whole("max_trials", self.max_trials, 1, 100_000)
        if self.max_seconds is not None:
            check_number("max_seconds", self.max_seconds, 1, 1e9)
        if self.max_train_flops is not None:
            check_number("max_train_flops", self.max_train_flops, 1e6, 1e26)
        check_whole("max_failures", self.max_failures, 1, 100_000)
        if self.max_trials is None and self.max_seconds is None and self.max_train_flops is None:
            raise FieldError("max_trials", expected="max_trials, max_seconds or max_train_flops to be given", got=None)

    def num_trials(self, train_flops: float, *, num_begun: int = 0, spent: float = 0.0) -> int | None:
        """How many trials of ``train_flops`` each it pays for, after ``num_begun`` for which ``spent`` are reserved; None
        where only time limits them."""
        limits = list[int]()
        if self.max_trials is not None:
            limits.append(self.max_trials - num_begun)
        if self.max_train_flops is not None:
            # A hair more than the quotient: three times a third of the budget is the budget.
            limits.append(int((self.max_train_flops * (1 + 1e-9) - spent) / train_flops))
        return max(0, min(limits)) if limits else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one running trial holds of the cluster; below 1 a GPU is shared."""

    cpus: Number = 1.0
    gpus: Number = 0.0

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_number("cpus", self.cpus, 0, 1024)
        check_number("gpus", self.gpus, 0, 64)
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise FieldError("gpus", expected="a share of one GPU (0 to 1) or a whole number", got=self.gpus)
        if self.cpus == 0 and self.gpus == 0:
            raise FieldError("cpus", expected="a positive share of a CPU or a GPU", got=self.cpus)


_SEARCH_ID = re.compile(r"[0-9a-f]{1,32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpec:
    """A search: how structures are judged, where they come from, how many, how they run.

    ``warm_start`` names earlier searches by their ids: their results are seen by the sampler, and taken over where the same
    would be trained again.

    Raises:
        FieldError: a value is outside its range.
    """

    name: str
    budget: Budget
    proxy: ProxySpec = field(default_factory=CharLM)
    space: Space = field(default_factory=Space)
    sampler: SamplerSpec = field(default_factory=Gp)
    pruner: PrunerSpec = field(default_factory=NoPruner)
    convergence: Convergence | None = None
    objectives: tuple[Objective, ...] = (Objective(),)
    replicates: Whole = 1
    racing: Racing | None = None
    concurrency: Whole = 2
    resources: Resources = field(default_factory=Resources)
    warm_start: tuple[str, ...] = ()

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        # Printable text also keeps out NUL and lone surrogates, which databases and UTF-8 refuse.
        if not 1 <= len(self.name) <= 200 or not self.name.isprintable():
            raise FieldError("name", expected="1 to 200 printable characters", got=self.name[:300])
        self._check_objectives()
        self._check_space()
        if isinstance(self.sampler, Plan):
            self._check_plan(self.sampler)
        elif self.num_trials(self.budget) == 0:
            raise FieldError(
                "budget",
                expected=f"max_train_flops for at least one trial, which takes {self.proxy.train_flops:g}",
                got=self.budget.max_train_flops,
            )
        check_whole("replicates", self.replicates, 1, 100)
        if self.racing is not None:
            self._check_racing(self.racing)
        check_whole("concurrency", self.concurrency, 1, 1024)
        self._check_warm_start()

    def num_trials(self, budget: Budget, *, num_begun: int = 0, spent: float = 0.0) -> int | None:
        """How many trials a budget pays for if all train to the end, after ``num_begun`` for which ``spent`` training FLOPs
        are reserved; None where only time limits them."""
        if isinstance(self.sampler, Plan):
            planned = len(self.sampler.runs)
            return (planned if budget.max_trials is None else min(planned, budget.max_trials)) - num_begun
        return budget.num_trials(self.proxy.train_flops, num_begun=num_begun, spent=spent)

    def train_flops(self, budget: Budget) -> float | None:
        """The training FLOPs of all trials that a budget pays for; None where only time limits them."""
        num_trials = self.num_trials(budget)
        if isinstance(self.sampler, Plan):
            return sum(run.on(self.proxy).train_flops for run in self.sampler.runs[:num_trials])
        return None if num_trials is None else num_trials * self.proxy.train_flops

    @property
    def other_metrics(self) -> tuple[ObjectiveName, ...]:
        """What is minimised beside the loss."""
        return tuple(objective.metric for objective in self.objectives[1:])

    @property
    def measures_steps(self) -> bool:
        """Whether what a training step costs is to be measured before every trial."""
        return not MEASURED.isdisjoint(self.other_metrics)

    @property
    def seeds_wanted(self) -> int:
        """How many trials a structure needs before it is said to be the best: never one alone where more were asked for."""
        return 1 if self.replicates == 1 and self.racing is None else 2

    @property
    def cube(self) -> Cube:
        """What the search chooses from, in the coordinates that samplers see."""
        axes = self.space.mixture
        return Cube(
            region=self.space.region,
            proxy=self.proxy,
            experts=axes.on(self.proxy) if axes else None,
            groups=self.space.groups,
        )

    def _check_space(self) -> None:
        if (self.space.mixture or self.space.groups) and isinstance(self.sampler, Grid | Plan):
            expected = "one that chooses more than a theta, as space.mixture or space.groups asks for"
            raise FieldError("sampler", expected=expected, got=self.sampler.kind)
        free = [group for group in self.proxy.groups if group not in self.proxy.group_thetas]
        if self.space.groups and not set(self.space.groups) < set(free):
            expected = f"groups that are some, but not all, of those that the proxy leaves open: {', '.join(free)}"
            raise FieldError("space", expected=expected, got=self.space.groups)
        try:
            _ = self.cube
        except FieldError as error:
            expected = f"of {error.field} {error.expected}"
            raise FieldError("space", expected=expected, got=error.got) from error

    def _check_objectives(self) -> None:
        names = [objective.metric for objective in self.objectives]
        if names[:1] != ["loss"] or len(set(names)) < len(names):
            raise FieldError("objectives", expected="the loss first, and every metric once", got=names)
        if len(names) > 1:
            if isinstance(self.sampler, CmaEs | RayTune):
                able = "one that takes several objectives: gp, tpe, nsga-ii, qmc, random or grid"
                raise FieldError("sampler", expected=able, got=self.sampler.kind)
            if self.convergence is not None:
                raise FieldError("convergence", expected="none for several objectives", got=self.convergence)

    def _check_racing(self, racing: Racing) -> None:
        if isinstance(self.sampler, Plan):
            raise FieldError("racing", expected="none: a plan lists its replicates", got=racing)
        if len(self.objectives) > 1:
            raise FieldError("racing", expected="none for several objectives: a front has no single best", got=racing)
        if racing.max_replicates <= self.replicates:
            expected = f"max_replicates above replicates, which is {self.replicates}: every structure has those"
            raise FieldError("racing", expected=expected, got=racing.max_replicates)

    def _check_warm_start(self) -> None:
        if len(self.warm_start) > MAX_SOURCES:
            raise FieldError(
                "warm_start", expected=f"at most {MAX_SOURCES} searches", got=f"{len(self.warm_start)} searches"
            )
        for search_id in self.warm_start:
            if _SEARCH_ID.fullmatch(search_id) is None:
                raise FieldError("warm_start", expected="ids of searches, such as 5f0c2ab91d3e", got=search_id)
        if len(set(self.warm_start)) < len(self.warm_start):
            raise FieldError("warm_start", expected="every search once", got=self.warm_start)

    def _check_plan(self, plan: Plan) -> None:
        if self.budget.max_train_flops is not None:
            raise FieldError(
                "budget", expected="no max_train_flops: a plan says what it costs", got=self.budget.max_train_flops
            )
        if self.replicates != 1:
            raise FieldError("replicates", expected="1: a plan lists its replicates", got=self.replicates)
        if self.convergence is not None:
            raise FieldError("convergence", expected="none: what a plan lists is trained", got=self.convergence)
        if not isinstance(self.pruner, NoPruner):
            raise FieldError("pruner", expected="none: what a plan lists is measured whole", got=self.pruner.kind)
        if self.warm_start:
            raise FieldError("warm_start", expected="none: what a plan lists is trained", got=self.warm_start)
        for number, run in enumerate(plan.runs):
            try:
                run.on(self.proxy)
            except FieldError as error:
                raise FieldError(
                    "sampler", expected=f"runs that the proxy can train; run {number}: {error}", got=run
                ) from error
