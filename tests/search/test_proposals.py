import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from einlayers.errors import FieldError
from einlayers.theta import NAMED, Theta
from search.axes import Axes, Bounds, SubspaceName
from search.cube import MixtureAxes, WholeRange
from search.designs import GRIDS, PAPERS_GRID, GridName
from search.plan import Plan, Run
from search.proposals import PastTrial, Proposal, check_space, derive_seed, propose
from search.proxies.char_lm import CharLM
from search.proxies.shapes import Mixture
from search.racing import Racing
from search.samplers.base import Observation
from search.samplers.registry import make_sampler
from search.sampling import CmaEs, Gp, Grid, NsgaII, Qmc, Random, RayTune, SamplerSpec, Tpe
from search.space import SUBSPACES, Unit
from search.spec import Budget, Constraints, Objective, ObjectiveName, SearchSpec, Space
from search.states import TrialState
from search.structure import structure_of
from search.variant import Variant

TINY = CharLM(dense_width=8, num_heads=1, depth=1, context=8, batch_size=1, train_flops=1e6, base_lr=5e-3)

End = Callable[[Proposal], PastTrial]

samplers = pytest.mark.parametrize("sampler", [Tpe(), CmaEs(), Qmc(), Random()], ids=["tpe", "cma-es", "qmc", "random"])


def _spec(
    space: Space | None = None,
    sampler: SamplerSpec | None = None,
    replicates: int = 1,
    racing: Racing | None = None,
) -> SearchSpec:
    return SearchSpec(
        name="test",
        budget=Budget(max_trials=100),
        proxy=TINY,
        space=space or Space(),
        sampler=sampler or Random(),
        replicates=replicates,
        racing=racing,
    )


def _next(spec: SearchSpec, history: list[PastTrial]) -> Proposal | None:
    return propose(spec, history, lambda: make_sampler(spec.sampler, spec.cube))


def _past(proposal: Proposal, state: TrialState = TrialState.COMPLETED, loss: float | None = None) -> PastTrial:
    structure = proposal.structure
    if loss is None and state is TrialState.COMPLETED:
        loss = 1 + structure.theta.rho
    return PastTrial(theta=structure.theta, digest=structure.digest, state=state, loss=loss)


def _search(spec: SearchSpec, limit: int, end: End = _past) -> list[Proposal]:
    """The proposals of a search whose every trial has ended before the next is asked for, until ``limit`` or None."""
    proposals: list[Proposal] = []
    history: list[PastTrial] = []
    while len(proposals) < limit and (proposal := _next(spec, history)) is not None:
        proposals.append(proposal)
        history.append(end(proposal))
    return proposals


class TestSeeds:
    @samplers
    def test_come_first_and_in_order(self, sampler: SamplerSpec) -> None:
        proposals = _search(_spec(Space(seeds=("btt", "dense", "kronecker")), sampler), 5)
        assert [proposal.structure.theta for proposal in proposals[:3]] == [
            NAMED["btt"],
            NAMED["dense"],
            NAMED["kronecker"],
        ]
        assert len(proposals) == 5

    def test_are_exempt_from_the_subspace_and_its_constraints(self) -> None:
        space = Space(subspace="low-rank", constraints=Constraints(psi_max=0.75), seeds=("dense", "kronecker"))
        families = [proposal.structure.family for proposal in _search(_spec(space), 4)]
        assert families == ["dense", "kronecker", "low-rank", "low-rank"]

    def test_are_not_tried_again_where_the_search_has_them_already(self) -> None:
        spec = _spec(Space(seeds=("dense", "btt")))
        dense = structure_of(Theta.of((1, 0, 0, 1, 0, 0, 0)), TINY)
        history = [PastTrial(theta=dense.theta, digest=dense.digest, state=TrialState.PROPOSED, loss=None)]
        proposal = _next(spec, history)
        assert proposal is not None
        assert proposal.structure.theta == NAMED["btt"]


class TestNovelty:
    @samplers
    @pytest.mark.parametrize("subspace", SUBSPACES)
    def test_never_proposes_a_structure_twice(self, subspace: str, sampler: SamplerSpec) -> None:
        space = Space(subspace=subspace, seeds=tuple(NAMED))  # type: ignore[arg-type]  # names of the registries
        proposals = _search(_spec(space, sampler), 25)
        digests = [proposal.structure.digest for proposal in proposals]
        assert len(digests) == len(set(digests))

    @pytest.mark.parametrize("state", TrialState)
    def test_counts_a_structure_as_known_in_every_state(self, state: TrialState) -> None:
        spec = _spec(Space(subspace="low-rank"))
        loss = 1.0 if state is TrialState.COMPLETED else None
        digests = [proposal.structure.digest for proposal in _search(spec, 6, lambda p: _past(p, state, loss))]
        assert len(digests) == len(set(digests)) == 6

    @samplers
    def test_ends_when_nothing_new_is_left(self, sampler: SamplerSpec) -> None:
        low_rank = SUBSPACES["low-rank"]
        every = {structure_of(low_rank.to_theta((i / 2000,)), TINY).digest for i in range(2001)}
        proposals = _search(_spec(Space(subspace="low-rank"), sampler), 2 * len(every))
        assert len(every) >= 5
        assert {proposal.structure.digest for proposal in proposals} == every

    @samplers
    def test_ends_at_once_where_the_constraints_leave_nothing(self, sampler: SamplerSpec) -> None:
        assert _search(_spec(Space(constraints=Constraints(params_max=1)), sampler), 3) == []


class TestGrid:
    @pytest.mark.parametrize("designs", GRIDS)
    @pytest.mark.parametrize("subspace", SUBSPACES)
    def test_has_something_in_every_subspace(self, subspace: SubspaceName, designs: GridName) -> None:
        assert _search(_spec(Space(subspace=subspace), Grid(designs=designs)), 1)

    def test_tries_what_it_lists_in_order_and_ends(self) -> None:
        named = [proposal.structure.theta for proposal in _search(_spec(sampler=Grid(designs="named")), 20)]
        assert named == list(NAMED.values())

    def test_tries_equal_models_once(self) -> None:
        proposals = _search(_spec(sampler=Grid(designs="papers")), 30)
        known = {structure_of(theta, TINY).digest for theta in PAPERS_GRID}
        assert {proposal.structure.digest for proposal in proposals} == known
        assert len(proposals) == len(known)

    def test_keeps_subspace_and_constraints(self) -> None:
        proposals = _search(_spec(Space(subspace="btt", constraints=Constraints(psi_max=0.9)), Grid()), 30)
        assert proposals
        for proposal in proposals:
            assert (proposal.structure.taxonomy.omega, proposal.structure.theta in PAPERS_GRID) == (0, True)
            assert proposal.structure.taxonomy.psi <= 0.9

    def test_is_trained_from_seeds_that_follow_from_its_own(self) -> None:
        seeds = [[proposal.seed for proposal in _search(_spec(sampler=Grid(seed=seed)), 3)] for seed in (0, 0, 1)]
        assert seeds[0] == seeds[1] != seeds[2]


class TestCheckOfTheSpace:
    @pytest.mark.parametrize("sampler", [Tpe(), Grid()], ids=["tpe", "grid"])
    def test_accepts_what_something_keeps(self, sampler: SamplerSpec) -> None:
        check_space(_spec(Space(constraints=Constraints(psi_min=1, omega_max=0)), sampler))
        check_space(_spec(sampler=sampler))

    @pytest.mark.parametrize("sampler", [Tpe(), Grid()], ids=["tpe", "grid"])
    def test_refuses_an_empty_region_and_says_what_there_is(self, sampler: SamplerSpec) -> None:
        with pytest.raises(FieldError) as refused:
            check_space(_spec(Space(constraints=Constraints(params_max=1)), sampler))
        assert re.fullmatch(
            r"constraints: expected bounds that some structure keeps; of \d+ in full, none does, "
            r"with params from \d+ to \d+, got \{'params_max': 1\}",
            str(refused.value),
        )

    def test_refuses_bounds_that_contradict_each_other_in_this_subspace(self) -> None:
        space = Space(subspace="full-rank-btt", constraints=Constraints(omega_max=0, psi_max=0.9))
        with pytest.raises(FieldError, match="none does, with omega from 0 to 0, psi from 1 to 1, got"):
            check_space(_spec(space))

    def test_refuses_a_grid_of_which_no_design_keeps_the_axes(self) -> None:
        space = Space(axes=Axes(gamma=Bounds(min=0.9, max=0.95)))
        with pytest.raises(
            FieldError, match="axes: expected what some design of the grid keeps; in full none does, got"
        ):
            check_space(_spec(space, Grid()))
        check_space(_spec(space))

    def test_leaves_plans_alone(self) -> None:
        space = Space(constraints=Constraints(params_max=1))
        check_space(_spec(space, Plan(runs=(Run(theta=NAMED["btt"]),))))


class TestSeveralObjectives:
    def test_are_shown_to_the_sampler_as_the_structures_have_them(self) -> None:
        spec = replace(_spec(), objectives=(Objective(), Objective(metric="macs"), Objective(metric="params")))
        proposals = _search(spec, 3)
        history = [replace(each.pending, state=TrialState.COMPLETED, loss=1.0) for each in proposals]
        costs = [proposal.structure.cost for proposal in proposals]
        expected = [(float(cost.macs), float(cost.params)) for cost in costs]
        assert [each.others for each in self._shown(spec, history)] == expected

    def test_are_shown_as_they_were_measured_and_nothing_where_one_is_missing(self) -> None:
        names: tuple[ObjectiveName, ...] = ("loss", "latency", "params", "peak_memory")
        spec = replace(_spec(), objectives=tuple(Objective(metric=name) for name in names))
        first, second, third, last = (proposal.pending for proposal in _search(spec, 4))
        history = [
            replace(first, state=TrialState.COMPLETED, loss=1.0, latency=0.25, peak_memory=4096),
            replace(second, state=TrialState.COMPLETED, loss=2.0, peak_memory=2048),
            replace(third, state=TrialState.INFEASIBLE, latency=0.5, peak_memory=1024),
            last,
        ]
        assert [(each.loss, each.others) for each in self._shown(spec, history)] == [
            (1.0, (0.25, float(first.params), 4096.0)),
            (None, (None, float(second.params), 2048.0)),
            (None, (0.5, float(third.params), 1024.0)),
        ]

    @staticmethod
    def _shown(spec: SearchSpec, history: Sequence[PastTrial]) -> list[Observation]:
        seen = list[Observation]()

        class Watching:
            learns = True

            def ask(
                self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
            ) -> Iterator[Unit]:
                seen.extend(observed)
                yield (0.9, 0.8, 0.7, 0.6, 0.5)

        assert propose(spec, history, Watching) is not None
        return seen


class TestConstraints:
    @samplers
    @pytest.mark.parametrize(
        "constraints",
        [
            Constraints(psi_min=1),
            Constraints(nu_max=0.75, omega_max=0.25),
            Constraints(params_max=2000),
            Constraints(macs_min=1600, macs_max=1700),
            Constraints(padding_max=0),
        ],
        ids=["full rank", "cheap", "small", "equal compute", "nothing padded"],
    )
    def test_are_kept_by_every_proposal(self, constraints: Constraints, sampler: SamplerSpec) -> None:
        proposals = _search(_spec(Space(constraints=constraints), sampler), 12)
        assert len(proposals) == 12
        assert all(constraints.allow(proposal.structure) for proposal in proposals)

    @pytest.mark.parametrize("constraints", [Constraints(nu_max=0.75), Constraints(nu_max=0.75, params_max=10**9)])
    def test_leave_the_choice_to_a_sampler_that_insists_on_what_they_forbid(self, constraints: Constraints) -> None:
        class Insisting:
            learns = True

            def ask(
                self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
            ) -> Iterator[Unit]:
                yield from (place(NAMED["dense"]) for _ in range(50))
                yield place(NAMED["monarch"])

        def place(theta: Theta) -> Unit:
            unit = SUBSPACES["full"].to_unit(theta)
            assert unit is not None
            return unit

        proposal = propose(_spec(Space(constraints=constraints)), [], Insisting)
        assert proposal is not None
        assert proposal.structure.theta == NAMED["monarch"]

    @samplers
    @pytest.mark.parametrize("subspace", SUBSPACES)
    def test_include_the_subspace(self, subspace: str, sampler: SamplerSpec) -> None:
        space = Space(subspace=subspace)  # type: ignore[arg-type]  # a name of the registry
        proposals = _search(_spec(space, sampler), 15)
        assert all(SUBSPACES[subspace].to_unit(proposal.structure.theta) is not None for proposal in proposals)


class TestAxes:
    @samplers
    def test_are_kept_by_every_proposal(self, sampler: SamplerSpec) -> None:
        space = Space(axes=Axes(gamma=Bounds(min=0.25, max=0.5), rho=Bounds(min=0.25, max=0.25)), ties=("beta=delta",))
        proposals = _search(_spec(space, sampler), 12)
        assert len(proposals) == 12
        for theta in (proposal.structure.theta for proposal in proposals):
            assert 0.25 - 1e-9 <= theta.gamma <= 0.5 + 1e-9
            assert theta.rho == pytest.approx(0.25)
            assert theta.beta == pytest.approx(theta.delta)

    @pytest.mark.parametrize(
        "sampler",
        [Tpe(), Gp(), CmaEs(), NsgaII(), Qmc(), Random(), RayTune(), RayTune(searcher="optuna")],
        ids=lambda sampler: sampler.kind,
    )
    def test_that_leave_one_structure_give_this_one_and_end(self, sampler: SamplerSpec) -> None:
        fixed = Bounds(min=0.25, max=0.25)
        space = Space(subspace="btt", axes=Axes(gamma=fixed, rho=fixed), ties=("gamma=phi",))
        proposals = _search(_spec(space, sampler, replicates=2), 9)
        assert [proposal.replicate for proposal in proposals] == [0, 1]
        assert proposals[0].structure.theta.exponents == pytest.approx((0.75, 0, 0.25, 0, 0.75, 0.25, 0.25))


class TestMixtures:
    """Numbers of experts beside theta."""

    AXES = MixtureAxes(num_experts=WholeRange(min=2, max=8), top_k=WholeRange(min=1, max=2))
    SPARSE = replace(TINY, mixture=Mixture(num_experts=4, top_k=2))

    def spec(self, sampler: SamplerSpec, space: Space, replicates: int = 1) -> SearchSpec:
        spec = replace(_spec(sampler=sampler, replicates=replicates), proxy=self.SPARSE)
        return replace(spec, space=replace(space, mixture=self.AXES))

    @samplers
    def test_are_within_their_ranges_and_say_what_is_trained(self, sampler: SamplerSpec) -> None:
        for proposal in _search(self.spec(sampler, Space()), 15):
            variant, mixture = proposal.structure.variant, proposal.proxy.mixture
            assert variant is not None
            assert mixture is not None
            assert (variant.num_experts, variant.top_k) == (mixture.num_experts, mixture.top_k)
            assert 1 <= mixture.top_k <= 2 <= mixture.num_experts <= 8
            cost = proposal.proxy.cost(proposal.structure.theta, proposal.structure.width)
            assert proposal.structure.cost == cost
            assert proposal.pending.variant == variant

    @samplers
    def test_are_searched_with_every_structure_until_all_are_known(self, sampler: SamplerSpec) -> None:
        proposals = _search(self.spec(sampler, Space(subspace="low-rank")), 40)
        assert len({proposal.digest for proposal in proposals}) == len(proposals) == 40
        assert len({proposal.structure.variant for proposal in proposals}) > 5

    def test_of_seeds_are_those_of_the_proxy(self) -> None:
        (seed, *_) = _search(self.spec(Random(), Space(seeds=("btt",))), 2)
        assert (seed.structure.variant, seed.proxy) == (None, self.SPARSE)

    def test_stay_those_of_a_replicate(self) -> None:
        proposals = _search(self.spec(Random(), Space(), replicates=2), 6, lambda p: replace(p.pending, loss=1.0))
        for first, second in (proposals[:2], proposals[2:4], proposals[4:]):
            assert (first.digest, first.structure, first.proxy) == (second.digest, second.structure, second.proxy)

    def test_are_what_the_sampler_sees(self) -> None:
        seen = list[Unit]()

        class Watching:
            learns = True

            def ask(
                self, observed: Sequence[Observation], pending: Sequence[Unit], num_coordinates: int, seed: int
            ) -> Iterator[Unit]:
                seen.extend(pending)
                yield (0.9,) * num_coordinates

        spec = self.spec(Random(), Space(subspace="low-rank"))
        history = [proposal.pending for proposal in _search(spec, 4, lambda p: p.pending)]
        proposal = propose(spec, history, Watching)
        assert proposal is not None
        assert [spec.cube.to_design(unit).variant for unit in seen] == [past.variant for past in history]
        assert proposal.structure.variant == Variant(num_experts=7, top_k=2)

    def test_can_be_bounded_by_what_they_cost(self) -> None:
        fixed = replace(self.spec(Random(), Space(subspace="low-rank")), proxy=replace(self.SPARSE, width=8))
        params = [proposal.structure.cost.params for proposal in _search(fixed, 12)]
        bound = sorted(params)[6]
        space = replace(fixed.space, constraints=Constraints(params_max=bound))
        assert max(proposal.structure.cost.params for proposal in _search(replace(fixed, space=space), 6)) <= bound
        check_space(replace(fixed, space=space))
        with pytest.raises(FieldError, match="none does, with params from"):
            check_space(replace(fixed, space=replace(space, constraints=Constraints(params_max=1))))


class TestGroups:
    """A theta of its own for attention."""

    SPEC = _spec(Space(subspace="btt", groups=("attention",), seeds=("dense", "btt")))

    @samplers
    def test_have_structures_of_the_subspace(self, sampler: SamplerSpec) -> None:
        proposals = _search(replace(self.SPEC, sampler=sampler), 15)
        assert [proposal.structure.variant for proposal in proposals[:2]] == [None, None]
        for proposal in proposals[2:]:
            variant = proposal.structure.variant
            assert variant is not None
            assert set(variant.group_thetas) == {"attention"}
            for theta in (proposal.structure.theta, variant.group_thetas["attention"]):
                assert SUBSPACES["btt"].to_unit(theta) is not None
            cost = proposal.proxy.cost(proposal.structure.theta, proposal.structure.width)
            assert (proposal.proxy, proposal.structure.cost) == (variant.on(TINY), cost)
        assert len({proposal.digest for proposal in proposals}) == 15

    def test_are_learnt_from_one_by_one(self) -> None:
        # Losses that fall with the rank of attention alone, or rise with it: attention must follow.
        def rank(past: PastTrial) -> float:
            assert past.variant is not None
            return past.variant.group_thetas["attention"].rho

        def ranks(sign: int) -> float:
            spec = replace(self.SPEC, sampler=Tpe(startup_trials=8), space=replace(self.SPEC.space, seeds=()))
            found = _search(
                spec, 30, lambda p: replace(p.pending, state=TrialState.COMPLETED, loss=sign * rank(p.pending))
            )
            return sum(rank(proposal.pending) for proposal in found[8:])

        assert ranks(-1) > 1.5 * ranks(1)

    def test_can_be_recomputed_from_the_history_alone(self) -> None:
        proposals = _search(self.SPEC, 8, lambda p: replace(p.pending, state=TrialState.COMPLETED, loss=1.0))
        history = [replace(p.pending, state=TrialState.COMPLETED, loss=1.0) for p in proposals]
        assert [_next(self.SPEC, history[:number]) for number in range(8)] == proposals


class TestReplicates:
    @samplers
    def test_share_the_structure_and_differ_in_seed(self, sampler: SamplerSpec) -> None:
        proposals = _search(_spec(Space(seeds=("dense",)), sampler, replicates=3), 9)
        for first in (0, 3, 6):
            group = proposals[first : first + 3]
            assert [proposal.replicate for proposal in group] == [0, 1, 2]
            assert len({proposal.structure.digest for proposal in group}) == 1
            assert len({proposal.structure.theta for proposal in group}) == 1
        assert len({proposal.structure.digest for proposal in proposals}) == 3
        assert len({proposal.seed for proposal in proposals}) == 9

    def test_complete_the_last_structure_of_an_exhausted_space(self) -> None:
        once = _search(_spec(Space(subspace="low-rank")), 100)
        thrice = _search(_spec(Space(subspace="low-rank"), replicates=3), 300)
        assert len(thrice) == 3 * len(once)


class TestRacing:
    @samplers
    def test_gives_contenders_further_seeds_and_nobody_else(self, sampler: SamplerSpec) -> None:
        # Every structure has a loss of its own, all of them far apart but for the two lowest.
        ladder = [3.0, 1.0, 5.0, 1.001, 8.0, 13.0, 21.0, 34.0, 55.0, 89.0]
        known = dict[str, float]()

        def end(proposal: Proposal) -> PastTrial:
            known.setdefault(proposal.digest, ladder[len(known) % len(ladder)])
            return _past(proposal, loss=known[proposal.digest])

        spec = replace(_spec(sampler=sampler, racing=Racing()), budget=Budget(max_trials=14))
        proposals = _search(spec, 14, end)
        tried = Counter(known[proposal.digest] for proposal in proposals)
        assert {loss for loss, times in tried.items() if times > 1} <= {1.0, 1.001, 3.0}
        assert (tried[1.0], tried[1.001]) == (3, 3)
        assert len({proposal.seed for proposal in proposals}) == 14
        for digest in known:
            replicates = [proposal.replicate for proposal in proposals if proposal.digest == digest]
            assert replicates == list(range(len(replicates)))

    def test_can_be_recomputed_from_the_history_alone(self) -> None:
        spec = _spec(sampler=Tpe(startup_trials=5), racing=Racing(sd=0.3))
        proposals = _search(spec, 30)
        assert any(proposal.replicate for proposal in proposals)
        history = [_past(proposal) for proposal in proposals]
        assert [_next(spec, history[:number]) for number in range(30)] == proposals

    def test_counts_what_runs_and_waits_for_no_loss(self) -> None:
        spec = replace(_spec(racing=Racing(max_replicates=2)), budget=Budget(max_seconds=60))
        history = [_past(proposal) for proposal in _search(_spec(), 3)]
        best = min(history, key=lambda past: past.loss or 0)
        fourth = _next(spec, history)
        assert fourth is not None
        assert (fourth.digest, fourth.replicate) == (best.digest, 1)
        fifth = _next(spec, [*history, fourth.pending])
        assert fifth is not None
        assert fifth.digest not in {past.digest for past in history}

    @pytest.mark.parametrize(
        ("second", "wanted"),
        [
            (TrialState.PRUNED, False),
            (TrialState.FAILED, True),
            (TrialState.INFEASIBLE, True),
            (TrialState.RUNNING, True),
        ],
    )
    def test_gives_up_what_a_pruner_has_stopped(self, second: TrialState, wanted: bool) -> None:
        spec = replace(_spec(racing=Racing()), budget=Budget(max_seconds=60))
        history = [_past(proposal, loss=1.0 + proposal.number) for proposal in _search(_spec(), 6)]
        again = replace(history[0], loss=5.0 if second is TrialState.PRUNED else None, state=second)
        proposal = _next(spec, [*history, again])
        assert proposal is not None
        assert (proposal.digest == history[0].digest) == wanted

    def test_makes_up_for_what_was_excluded(self) -> None:
        spec = replace(_spec(racing=Racing(max_replicates=2)), budget=Budget(max_seconds=60))
        history = [_past(proposal, loss=1.0 + proposal.number) for proposal in _search(_spec(), 6)]
        again = replace(history[0], loss=1.5)
        digests = [
            proposal.digest
            for excluded in (True, False)
            if (proposal := _next(spec, [*history, replace(again, excluded=excluded)]))
        ]
        assert (digests[0] == history[0].digest, digests[1] in {past.digest for past in history}) == (True, False)

    def test_goes_on_where_nothing_new_is_left(self) -> None:
        low_rank = Space(subspace="low-rank")
        once = _search(_spec(low_rank), 100)
        raced = _search(_spec(low_rank, racing=Racing(sd=10.0)), 300)
        assert len(raced) == 3 * len(once)
        assert raced[-1].replicate == 2

    def test_gives_what_still_runs_a_second_seed_where_nothing_new_is_left(self) -> None:
        spec = _spec(sampler=Grid(designs="named"), racing=Racing())
        num_named = len(_search(_spec(sampler=Grid(designs="named")), 100))
        proposals = _search(spec, 100, lambda proposal: proposal.pending)
        assert Counter(Counter(proposal.digest for proposal in proposals).values()) == {2: num_named}

    def test_begins_after_the_replicates_that_every_structure_gets(self) -> None:
        spec = replace(_spec(replicates=2, racing=Racing()), budget=Budget(max_trials=20))
        proposals = _search(spec, 20, lambda proposal: _past(proposal, loss=2.0**proposal.structure.theta.rho))
        times = Counter(proposal.digest for proposal in proposals)
        assert set(times.values()) == {2, 3}

    def test_knows_the_end_of_a_budget_of_compute(self) -> None:
        budgets = Budget(max_trials=12), Budget(max_train_flops=12 * TINY.train_flops)
        one, other = (_search(replace(_spec(racing=Racing(sd=0.5)), budget=budget), 12) for budget in budgets)
        assert one == other
        assert one[-1].replicate > 0


class TestProposal:
    @samplers
    def test_depends_on_nothing_but_the_spec_and_the_history(self, sampler: SamplerSpec) -> None:
        spec = _spec(Space(seeds=("dense", "btt")), sampler)
        assert _search(spec, 20) == _search(spec, 20)

    @samplers
    def test_can_be_recomputed_from_the_history_alone(self, sampler: SamplerSpec) -> None:
        spec = _spec(sampler=sampler)
        proposals = _search(spec, 16)
        history = [_past(proposal) for proposal in proposals]
        assert [_next(spec, history[:number]) for number in range(16)] == proposals

    @pytest.mark.parametrize("kind", [Tpe, Random])
    def test_differs_for_another_seed(self, kind: Callable[..., SamplerSpec]) -> None:
        one, other = (_search(_spec(sampler=kind(seed=seed)), 5) for seed in (0, 1))
        assert {proposal.structure.theta for proposal in one}.isdisjoint(proposal.structure.theta for proposal in other)
        assert {proposal.seed for proposal in one}.isdisjoint(proposal.seed for proposal in other)

    def test_learns_from_what_was_seen_with_tpe(self) -> None:
        # Losses that fall with the rank exponent, or rise with it: the structures must follow.
        spec = _spec(Space(subspace="btt"), Tpe(startup_trials=8))
        low = _search(spec, 24, lambda p: _past(p, loss=p.structure.theta.rho))[8:]
        high = _search(spec, 24, lambda p: _past(p, loss=-p.structure.theta.rho))[8:]
        assert sum(p.structure.theta.rho for p in high) > 1.5 * sum(p.structure.theta.rho for p in low)

    def test_numbers_the_trials_and_counts_the_ends_it_has_seen(self) -> None:
        spec = _spec()
        first, second = _search(spec, 2)
        history = [_past(first, TrialState.RUNNING), _past(second, TrialState.INFEASIBLE)]
        third = _next(spec, history)
        assert third is not None
        assert (first.number, second.number, third.number) == (0, 1, 2)
        assert (first.history_size, second.history_size, third.history_size) == (0, 1, 1)

    @pytest.mark.parametrize("states", [(TrialState.PROPOSED,), (TrialState.RUNNING, TrialState.FAILED)])
    def test_does_not_wait_for_trials_that_run(self, states: tuple[TrialState, ...]) -> None:
        spec = _spec(sampler=Tpe(startup_trials=3))
        proposals = _search(spec, 12, lambda p: _past(p, states[p.number % len(states)]))
        assert len({proposal.structure.digest for proposal in proposals}) == 12

    def test_accepts_a_history_from_outside_of_the_subspace(self) -> None:
        spec = _spec(Space(subspace="low-rank"), Tpe(startup_trials=1))
        outside = [structure_of(theta, TINY) for theta in NAMED.values()]
        history = [
            PastTrial(theta=structure.theta, digest=structure.digest, state=TrialState.COMPLETED, loss=1.0)
            for structure in outside
        ]
        proposal = _next(spec, history)
        assert proposal is not None
        assert proposal.structure.family == "low-rank"
        assert (proposal.number, proposal.history_size) == (6, 6)


class TestDeriveSeed:
    def test_is_the_same_in_every_process_and_version(self) -> None:
        # The first four bytes of: printf '0 training 0' | sha256sum
        assert derive_seed(0, "training", 0) == 0x2A572A22
        assert derive_seed(7, "proposal", 3, 11) == 0x3B194B6E

    def test_fits_a_database_and_every_sampler(self) -> None:
        assert all(
            0 <= derive_seed(seed, "training", number) < 2**63 for seed in (0, 2**63 - 1) for number in range(500)
        )

    def test_tells_every_argument_apart(self) -> None:
        seeds = {
            derive_seed(seed, purpose, *numbers)
            for seed in range(10)
            for purpose in ("training", "proposal")
            for numbers in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (10,), (1, 0, 0))
        }
        assert len(seeds) == 10 * 2 * 8
