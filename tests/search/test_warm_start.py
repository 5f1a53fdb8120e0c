"""Searches that start from earlier ones: which may serve, what the sampler sees of them, what is not trained again."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from einlayers.errors import FieldError
from einlayers.theta import NAMED, Theta
from search.plan import Plan, Run
from search.proposals import Inherited, PastTrial, Proposal, propose
from search.proxies.char_lm import CharLM
from search.proxies.regression import Regression
from search.samplers.base import Observation
from search.samplers.registry import make_sampler
from search.sampling import Random, Tpe
from search.space import SUBSPACES, Unit
from search.spec import MAX_SOURCES, Budget, Objective, SearchSpec, Space
from search.states import TrialState
from search.structure import structure_of
from search.warm_start import check_source

TINY = CharLM(dense_width=8, num_heads=1, depth=1, context=8, batch_size=1, train_flops=1e6, base_lr=5e-3)
SOURCE_ID = "5f0c2ab91d3e"


def _spec(**changes: object) -> SearchSpec:
    spec = SearchSpec(name="test", budget=Budget(max_trials=100), proxy=TINY, sampler=Random())
    return replace(spec, **changes)  # type: ignore[arg-type]  # the fields of a spec


def _inherited(
    theta: Theta, number: int = 0, loss: float | None = 2.0, state: TrialState = TrialState.COMPLETED
) -> Inherited:
    structure = structure_of(theta, TINY)
    return Inherited(
        trial_id=f"{SOURCE_ID}-{number}",
        seed=1000 + number,
        theta=theta,
        digest=structure.digest,
        state=state,
        loss=loss,
        params=structure.cost.params,
        macs=structure.cost.macs,
    )


def _next(spec: SearchSpec, history: Sequence[PastTrial], inherited: Sequence[Inherited] = ()) -> Proposal:
    proposal = propose(spec, history, lambda: make_sampler(spec.sampler, spec.cube), inherited)
    assert proposal is not None
    return proposal


def _end(proposal: Proposal, loss: float) -> PastTrial:
    past = proposal.pending
    return past if past.state.is_final else replace(past, state=TrialState.COMPLETED, loss=loss)


class TestSpec:
    @pytest.mark.parametrize(
        "warm_start",
        [
            ("no id",),
            ("",),
            ("5F0C",),
            ("a\0",),
            ("a" * 33,),
            ("a", "a"),
            tuple(f"{i:x}" for i in range(MAX_SOURCES + 1)),
        ],
    )
    def test_names_searches_each_once(self, warm_start: tuple[str, ...]) -> None:
        with pytest.raises(FieldError) as refused:
            _spec(warm_start=warm_start)
        assert refused.value.field == "warm_start"

    def test_takes_as_many_as_it_says(self) -> None:
        assert len(_spec(warm_start=tuple(f"{i:x}" for i in range(MAX_SOURCES))).warm_start) == MAX_SOURCES

    def test_is_none_for_a_plan(self) -> None:
        with pytest.raises(FieldError, match="none: what a plan lists is trained"):
            _spec(sampler=Plan(runs=(Run(theta=NAMED["btt"]),)), warm_start=("a",))


class TestSources:
    def test_are_searches_on_the_same_proxy_whatever_else_they_are(self) -> None:
        other = _spec(name="other", sampler=Tpe(seed=7), space=Space(subspace="btt"), replicates=3)
        check_source(_spec(), SOURCE_ID, other)
        check_source(_spec(), SOURCE_ID, _spec(sampler=Plan(runs=(Run(theta=NAMED["btt"]),) * 2)))

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"train_flops": 2e6}, "there train_flops is 2000000.0, here 1000000.0, got '5f0c2ab91d3e'"),
            ({"base_lr": 1e-3, "data_seed": 0}, "there base_lr is 0.001, here 0.005, data_seed is 0, here None"),
            ({"base_lr": None}, "there base_lr is None, here 0.005"),
            ({"warmup_steps": 51}, "there warmup_steps is 51, here 50"),
        ],
    )
    def test_are_refused_with_what_their_proxies_differ_in(self, changes: dict[str, object], told: str) -> None:
        other = _spec(proxy=replace(TINY, **changes))  # type: ignore[arg-type]  # fields of the proxy
        with pytest.raises(FieldError) as refused:
            check_source(_spec(), SOURCE_ID, other)
        assert str(refused.value).startswith("warm_start: expected searches on exactly this proxy; there")
        assert told in str(refused.value)

    def test_of_another_kind_are_refused_by_their_kind_alone(self) -> None:
        with pytest.raises(FieldError, match=r"there kind is 'regression', here 'char_lm', got"):
            check_source(_spec(), SOURCE_ID, _spec(proxy=Regression(base_lr=1e-3)))

    def test_have_measured_steps_where_these_are_minimised(self) -> None:
        spec = _spec(objectives=(Objective(), Objective(metric="latency")))
        check_source(spec, SOURCE_ID, _spec(objectives=(Objective(), Objective(metric="peak_memory"))))
        check_source(_spec(), SOURCE_ID, spec)
        with pytest.raises(FieldError, match="searches that measure latency and peak_memory"):
            check_source(spec, SOURCE_ID, _spec())

    def test_that_are_plans_train_nothing_else_in_any_run(self) -> None:
        plan = Plan(runs=(Run(theta=NAMED["btt"]), Run(theta=NAMED["btt"], lr_mult=2.0)))
        with pytest.raises(
            FieldError, match=r"there base_lr is 0.01, here 0.005, got '5f0c2ab91d3e, run 1 of its plan'"
        ):
            check_source(_spec(), SOURCE_ID, _spec(sampler=plan))


class _Watching:
    """Remembers what it was shown, and proposes one structure."""

    learns = True

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def ask(
        self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
    ) -> Iterator[Unit]:
        self.seen = list(observed)
        yield (0.77,) * num_coordinates


class TestWhatTheSamplerSees:
    def _seen(
        self, spec: SearchSpec, history: Sequence[PastTrial], inherited: Sequence[Inherited]
    ) -> list[tuple[Unit, float | None]]:
        sampler = _Watching()
        propose(spec, history, lambda: sampler, inherited)
        return [(each.unit, each.loss) for each in sampler.seen]

    def test_is_what_was_inherited_and_then_its_own(self) -> None:
        spec = _spec(space=Space(subspace="btt"))
        subspace = SUBSPACES["btt"]
        units = [subspace.to_unit(NAMED[name]) for name in ("monarch", "low-rank", "btt")]
        own = replace(_inherited(NAMED["btt"]), trial_id="own")
        inherited = [
            _inherited(NAMED["monarch"], 0, 3.0),
            _inherited(NAMED["low-rank"], 1, None, TrialState.INFEASIBLE),
        ]
        assert self._seen(spec, [own], inherited) == list(zip(units, (3.0, None, 2.0), strict=True))

    def test_is_what_lies_in_the_subspace_and_counts(self) -> None:
        spec = _spec(space=Space(subspace="low-rank"))
        inherited = [
            _inherited(NAMED["low-rank"], 0, 1.5, TrialState.PRUNED),
            _inherited(NAMED["kronecker"], 1),
            replace(_inherited(NAMED["low-rank"], 2), excluded=True),
        ]
        assert [loss for _, loss in self._seen(spec, [], inherited)] == [1.5]

    def test_is_every_result_once(self) -> None:
        spec = _spec(space=Space(subspace="btt", seeds=("monarch",)))
        inherited = [_inherited(NAMED["monarch"], 0, 3.0), _inherited(NAMED["low-rank"], 1, 4.0)]
        history = [_next(spec, [], inherited).pending]
        assert [loss for _, loss in self._seen(spec, history, inherited)] == [4.0, 3.0]


class TestReuse:
    @pytest.mark.parametrize(("state", "loss"), [(TrialState.COMPLETED, 2.0), (TrialState.INFEASIBLE, None)])
    def test_takes_a_result_over_where_it_would_be_trained_again(self, state: TrialState, loss: float | None) -> None:
        inherited = [_inherited(NAMED["btt"].swapped(), 3, loss, state)]
        proposal = _next(_spec(space=Space(seeds=("btt",))), [], inherited)
        assert proposal.reused == inherited[0]
        assert (proposal.number, proposal.seed, proposal.train_flops) == (0, 1003, 0)
        past = proposal.pending
        assert (past.state, past.loss, past.reused_from) == (state, loss, f"{SOURCE_ID}-3")

    @pytest.mark.parametrize(
        "inherited",
        [
            _inherited(NAMED["monarch"]),
            _inherited(NAMED["btt"], state=TrialState.PRUNED),
            replace(_inherited(NAMED["btt"]), excluded=True),
        ],
        ids=["another structure", "pruned", "excluded"],
    )
    def test_trains_what_nobody_has_a_result_of(self, inherited: Inherited) -> None:
        spec = _spec(space=Space(seeds=("btt",)))
        assert _next(spec, [], [inherited]) == _next(spec, [])

    def test_serves_what_the_sampler_proposes(self) -> None:
        spec = _spec(space=Space(subspace="low-rank"))
        history: list[PastTrial] = []
        while proposal := propose(spec, history, lambda: make_sampler(spec.sampler, spec.cube)):
            history.append(_end(proposal, 1.0))
        inherited = [_inherited(past.theta, number) for number, past in enumerate(history)]
        again: list[PastTrial] = []
        while proposal := propose(spec, again, lambda: make_sampler(spec.sampler, spec.cube), inherited):
            assert proposal.reused is not None
            again.append(proposal.pending)
        assert {past.digest for past in again} == {past.digest for past in history}
        assert len(again) == len(history)

    def test_takes_replicates_over_as_far_as_there_are_any_and_trains_the_others(self) -> None:
        spec = _spec(space=Space(seeds=("btt",)), replicates=4)
        inherited = [_inherited(NAMED["btt"], number, float(number)) for number in (5, 2)]
        history: list[PastTrial] = []
        proposals = list[Proposal]()
        for _ in range(4):
            proposals.append(_next(spec, history, inherited))
            history.append(_end(proposals[-1], 7.0))
        assert [past.reused_from for past in history] == [f"{SOURCE_ID}-5", f"{SOURCE_ID}-2", None, None]
        assert [past.loss for past in history] == [5.0, 2.0, 7.0, 7.0]
        assert [proposal.replicate for proposal in proposals] == [0, 1, 2, 3]
        assert len({proposal.seed for proposal in proposals}) == 4

    def test_is_the_same_when_it_is_recomputed(self) -> None:
        spec = _spec(sampler=Tpe(startup_trials=3), space=Space(subspace="btt", seeds=("dense",)))
        inherited = [
            _inherited(NAMED[name], i, 3.0 + i) for i, name in enumerate(("dense", "btt", "low-rank", "monarch"))
        ]
        history: list[PastTrial] = []
        proposals = list[Proposal]()
        for number in range(12):
            proposals.append(_next(spec, history, inherited))
            history.append(_end(proposals[-1], 1.0 + number % 5))
        assert proposals[0].reused == inherited[0]
        assert [_next(spec, history[:number], inherited) for number in range(12)] == proposals
        assert [_next(spec, history[:number]) for number in range(12)] != proposals


class TestWhatItIsGoodFor:
    def test_finds_better_structures_with_as_many_trainings(self) -> None:
        """Over repetitions with different seeds, on a landscape whose optimum is inside of the subspace."""
        best = [[self._best(seed, inherited) for inherited in ([], self._source(seed))] for seed in range(5)]
        assert sum(warm < cold for cold, warm in best) >= 4
        assert sum(warm for _, warm in best) < 0.5 * sum(cold for cold, _ in best)

    def _spec(self, seed: int) -> SearchSpec:
        return _spec(sampler=Tpe(seed=seed, startup_trials=8), space=Space(subspace="btt"))

    def _loss(self, theta: Theta) -> float:
        unit = SUBSPACES["btt"].to_unit(theta)
        assert unit is not None
        return sum((u - optimum) ** 2 for u, optimum in zip(unit, (0.6, 0.35, 0.5), strict=True))

    def _source(self, seed: int) -> list[Inherited]:
        """What a search of 24 trials from another seed has found."""
        found: list[Inherited] = []
        for number in range(24):
            theta = _next(self._spec(100 + seed), found).structure.theta
            found.append(_inherited(theta, number, self._loss(theta)))
        return found

    def _best(self, seed: int, inherited: Sequence[Inherited]) -> float:
        """The lowest loss of ten trainings."""
        history: list[PastTrial] = []
        trained: list[float] = []
        while len(trained) < 10:
            proposal = _next(self._spec(seed), history, inherited)
            history.append(_end(proposal, self._loss(proposal.structure.theta)))
            if proposal.reused is None:
                trained.append(self._loss(proposal.structure.theta))
        return min(trained)
