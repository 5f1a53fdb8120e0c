"""The decision what to try next, as a function of the search's spec and its history.

Proposal n is a wanted replicate, a known design while there are seeds left, or what the sampler says; what is new keeps the
constraints and is no structure that the search has already. Its randomness is H(search seed, n), so it can be recomputed at
any time.
"""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice

from einlayers.errors import FieldError
from einlayers.taxonomy import taxonomy
from einlayers.theta import NAMED, Theta
from search.cube import Design
from search.designs import GRIDS
from search.plan import Plan
from search.proxies.registry import ProxySpec
from search.racing import Entrant, last_replicate, next_replicate
from search.samplers.base import Observation, Sampler
from search.sampling import Grid
from search.space import Unit
from search.spec import SearchSpec, metrics
from search.states import TrialState
from search.structure import Structure, structure_of
from search.variant import Variant

_SAMPLER_ASKS, _SAMPLER_TRIES = 250, 32
_EVEN_TRIES = 250
"""How many points may be refused in a row: first the sampler's, which may insist on what is known already, or on what the
constraints forbid; those whose taxonomy is forbidden are only asked for, and not costed. Then points spread over the whole
space. When these are all refused too, the space counts as exhausted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTrial:
    """A trial as the next proposal sees it; the history lists them in order of their number.

    One that was ``excluded`` is known, and not tried again by the search itself, but its loss teaches nothing. The loss of
    one that was pruned is what it would have had. ``latency`` and ``peak_memory`` are None until they were measured.
    ``reused_from``: the trial of another search that was trained instead.
    """

    theta: Theta
    digest: str
    state: TrialState
    loss: float | None
    excluded: bool = False
    params: int = 0
    macs: int = 0
    latency: float | None = None
    peak_memory: int | None = None
    reused_from: str | None = None
    variant: Variant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited(PastTrial):
    """A result of an earlier search on the same proxy: the trial ``trial_id`` was trained for it, from ``seed``.

    The sampler sees it before the search's own trials. Where the search comes to want the same training, it is taken over.
    """

    trial_id: str
    seed: int

    def serves(self, digest: str) -> bool:
        """Whether it is what a training of this structure would give; what was pruned has not been trained to its end."""
        is_whole = self.state in (TrialState.COMPLETED, TrialState.INFEASIBLE)
        return self.digest == digest and is_whole and not self.excluded


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A structure to train on a proxy, which replicate of that this is, the seed of its training, and how many ends it has
    seen. Two with the same ``digest`` are one training but for their seeds. ``reused``: it has been trained already, and
    costs nothing."""

    number: int
    replicate: int
    structure: Structure
    proxy: ProxySpec
    digest: str
    seed: int
    history_size: int
    reused: Inherited | None = None

    @property
    def train_flops(self) -> float:
        """What its trial will take of the budget."""
        return self.proxy.train_flops if self.reused is None else 0.0

    @property
    def pending(self) -> PastTrial:
        """Its trial, as the proposal after it sees it."""
        past = PastTrial(
            theta=self.structure.theta,
            digest=self.digest,
            state=TrialState.PROPOSED,
            loss=None,
            params=self.structure.cost.params,
            macs=self.structure.cost.macs,
            variant=self.structure.variant,
        )
        if self.reused is None:
            return past
        return replace(past, state=self.reused.state, loss=self.reused.loss, reused_from=self.reused.trial_id)


MakeSampler = Callable[[], Sampler]


def check_space(spec: SearchSpec) -> None:
    """See whether there is anything to try, seeds aside, as the first proposal would look for it.

    Raises:
        FieldError: no structure of the space keeps the constraints, or no design of the grid lies in it.
    """
    space, constraints = spec.space, spec.space.constraints
    if isinstance(spec.sampler, Plan) or not (constraints.bounds or isinstance(spec.sampler, Grid)):
        return
    refused = []
    for design in _possible(spec, 0):
        structure = structure_of(design.theta, spec.proxy, design.variant)
        if constraints.allow(structure):
            return
        refused.append(metrics(structure))
    if not refused:
        name, asked = ("axes", dict(space.axes.intervals)) if space.axes.intervals else ("ties", space.ties)
        raise FieldError(name, expected=f"what some design of the grid keeps; in {space.subspace} none does", got=asked)
    spans = ", ".join(
        f"{metric} from {min(each[metric] for each in refused):.6g} to {max(each[metric] for each in refused):.6g}"
        for metric in constraints.bounds
    )
    expected = f"bounds that some structure keeps; of {len(refused)} in {space.subspace}, none does, with {spans}"
    given = {name: bound for name, bound in asdict(constraints).items() if bound is not None}
    raise FieldError("constraints", expected=expected, got=given)


def propose(
    spec: SearchSpec, history: Sequence[PastTrial], make_sampler: MakeSampler, inherited: Sequence[Inherited] = ()
) -> Proposal | None:
    """The next proposal, number ``len(history)``, of a search that has ``inherited`` results of earlier ones; None where
    nothing new is left to try within the constraints."""
    if isinstance(spec.sampler, Plan):
        return _planned(spec, spec.sampler, history)
    wanted = _lacking_replicates(history, spec.replicates) or _racing(spec, history)
    if wanted is None:
        structure = _next_structure(spec, history, make_sampler, _left(inherited, history))
        if structure is not None:
            return proposal_of(structure, spec, history, inherited=inherited)
        wanted = _racing_on(spec, history)
    if wanted is None:
        return None
    structure = structure_of(wanted.theta, spec.proxy, wanted.variant)
    return proposal_of(structure, spec, history, inherited=inherited)


def proposal_of(
    structure: Structure,
    spec: SearchSpec,
    history: Sequence[PastTrial],
    proxy: ProxySpec | None = None,
    inherited: Sequence[Inherited] = (),
) -> Proposal:
    """The proposal to train ``structure`` next, once more where the history has it already; ``proxy``: not that of the
    search, or the variant of it that the structure says. What is ``inherited`` is not trained again, but taken over, each
    result once."""
    proxy = proxy or structure.on(spec.proxy)
    number, digest = len(history), _digest(structure, spec.proxy, proxy)
    reused = next((each for each in _left(inherited, history) if each.serves(digest)), None)
    return Proposal(
        number=number,
        replicate=sum(past.digest == digest for past in history),
        structure=structure,
        proxy=proxy,
        digest=digest,
        seed=training_seed(spec, number) if reused is None else reused.seed,
        history_size=sum(past.state.is_final for past in history),
        reused=reused,
    )


def _left(inherited: Sequence[Inherited], history: Sequence[PastTrial]) -> Sequence[Inherited]:
    """What has been inherited and not been taken over yet."""
    if not inherited:
        return inherited
    used = {past.reused_from for past in history}
    return [each for each in inherited if each.trial_id not in used]


def _planned(spec: SearchSpec, plan: Plan, history: Sequence[PastTrial]) -> Proposal | None:
    if len(history) >= len(plan.runs):
        return None
    run = plan.runs[len(history)]
    proxy = run.on(spec.proxy)
    return proposal_of(structure_of(run.theta, proxy), spec, history, proxy)


def _digest(structure: Structure, usual: ProxySpec, proxy: ProxySpec) -> str:
    # The width is the structure's own; what else a run changes makes another training of the same model.
    if (proxy.train_flops, proxy.base_lr) == (usual.train_flops, usual.base_lr):
        return structure.digest
    return hashlib.sha256(f"{structure.digest} {proxy.train_flops} {proxy.base_lr}".encode()).hexdigest()[:32]


def training_seed(spec: SearchSpec, number: int) -> int:
    """The seed that trial ``number`` of a search is trained from."""
    return derive_seed(spec.sampler.seed, "training", number)


def _lacking_replicates(history: Sequence[PastTrial], replicates: int) -> PastTrial | None:
    """The first structure that has been tried less often than wanted, and was not given up."""
    if replicates == 1:
        return None
    times = Counter(past.digest for past in history)
    given_up = {past.digest for past in history if past.state is TrialState.PRUNED}
    return next((past for past in history if times[past.digest] < replicates and past.digest not in given_up), None)


def _racing(spec: SearchSpec, history: Sequence[PastTrial]) -> PastTrial | None:
    """The structure that a race gives a further trial before anything new is tried."""
    if spec.racing is None:
        return None
    # What pruned trials gave back is not counted: the end of the budget is then expected too early, and not too late.
    begun = sum(past.reused_from is None for past in history)
    left = spec.num_trials(spec.budget, num_begun=begun, spent=begun * spec.proxy.train_flops)
    entrants = _entrants(history)
    return _trial_of(next_replicate(spec.racing, entrants, replicates=spec.replicates, num_left=left), history)


def _racing_on(spec: SearchSpec, history: Sequence[PastTrial]) -> PastTrial | None:
    """The structure that a race gives a further trial when there is nothing new to try."""
    return None if spec.racing is None else _trial_of(last_replicate(spec.racing, _entrants(history)), history)


def _entrants(history: Sequence[PastTrial]) -> list[Entrant]:
    """The structures that were not given up; a trial that was excluded is none, so that there may be another one."""
    given_up = {past.digest for past in history if past.state is TrialState.PRUNED}
    num_trials, pending = Counter[str](), set[str]()
    losses: defaultdict[str, list[float]] = defaultdict(list)
    for past in history:
        if past.digest in given_up or past.excluded:
            continue
        num_trials[past.digest] += 1
        if past.state is TrialState.COMPLETED and past.loss is not None:
            losses[past.digest].append(past.loss)
        elif not past.state.is_final:
            pending.add(past.digest)
    return [
        Entrant(digest=digest, num_trials=number, losses=tuple(losses[digest]), is_pending=digest in pending)
        for digest, number in num_trials.items()
    ]


def _trial_of(entrant: Entrant | None, history: Sequence[PastTrial]) -> PastTrial | None:
    return None if entrant is None else next(past for past in history if past.digest == entrant.digest)


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """H(seed, purpose, numbers), a non-negative integer below 2**32: what every generator takes, and short to read."""
    text = " ".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def _next_structure(
    spec: SearchSpec, history: Sequence[PastTrial], make_sampler: MakeSampler, inherited: Sequence[Inherited]
) -> Structure | None:
    known = {past.digest for past in history}
    for name in spec.space.seeds:
        structure = structure_of(NAMED[name], spec.proxy)
        if structure.digest not in known:
            return structure
    for design in _candidates(spec, history, make_sampler, inherited):
        structure = structure_of(design.theta, spec.proxy, design.variant)
        if structure.digest not in known and spec.space.constraints.allow(structure):
            return structure
    return None


def _candidates(
    spec: SearchSpec, history: Sequence[PastTrial], make_sampler: MakeSampler, inherited: Sequence[Inherited]
) -> Iterator[Design]:
    """Designs to try for one proposal, in order: the sampler's, and those that anything could propose."""
    cube = spec.cube
    # Of a single structure there is nothing to sample.
    if not isinstance(spec.sampler, Grid) and cube.num_coordinates:
        sampler = make_sampler()
        observed, pending = seen(spec, [*inherited, *history]) if sampler.learns else ([], [])
        asked = sampler.ask(observed, pending, cube.num_coordinates, _proposal_seed(spec, len(history)))
        designs = map(cube.to_design, islice(asked, _SAMPLER_ASKS))
        allowed = (each for each in designs if spec.space.constraints.allow_taxonomy(taxonomy(each.theta)))
        yield from islice(allowed, _SAMPLER_TRIES)
    yield from _possible(spec, len(history))


def _possible(spec: SearchSpec, number: int) -> Iterator[Design]:
    """What proposal ``number`` can be when the sampler has nothing new: structures of its list, or of the whole space."""
    cube = spec.cube
    if isinstance(spec.sampler, Grid):
        designs = GRIDS[spec.sampler.designs]
        yield from (Design(theta=theta) for theta in designs if cube.to_unit(theta) is not None)
    else:
        even = even_points(cube.num_coordinates, _proposal_seed(spec, number))
        yield from map(cube.to_design, islice(even, _EVEN_TRIES if cube.num_coordinates else 1))


def _proposal_seed(spec: SearchSpec, number: int) -> int:
    return derive_seed(spec.sampler.seed, "proposal", number)


def even_points(num_coordinates: int, seed: int) -> Iterator[Unit]:
    """Points that fill the cube evenly, from a random start: an additive recurrence with the generalised golden ratio.

    Even, so that a region of share p is met within about 1/p points and not only probably.
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (num_coordinates + 1))
    draw = random.Random(seed)
    start = [draw.random() for _ in range(num_coordinates)]
    for n in count(1):
        yield tuple((start[i] + n * ratio ** -(i + 1)) % 1 for i in range(num_coordinates))


def seen(spec: SearchSpec, history: Sequence[PastTrial]) -> tuple[list[Observation], list[Unit]]:
    """What was tried and what is being tried, in the sampler's coordinates, without designs from outside of the space."""
    cube, metrics = spec.cube, spec.other_metrics
    observed, pending = list[Observation](), list[Unit]()
    for past in history:
        unit = cube.to_unit(past.theta, past.variant)
        if not unit:
            continue
        if not past.state.is_final:
            pending.append(unit)
        elif not past.excluded:
            observed.append(_observation(past, unit, metrics))
    return observed, pending


def _observation(past: PastTrial, unit: Unit, metrics: Sequence[str]) -> Observation:
    """An end as a sampler sees it; without all of its values there is no place among the others, whatever the loss."""
    if not metrics:
        return Observation(unit=unit, loss=past.loss)
    others = [getattr(past, metric) for metric in metrics]
    return Observation(
        unit=unit,
        loss=None if None in others else past.loss,
        others=tuple(None if value is None else float(value) for value in others),
    )
