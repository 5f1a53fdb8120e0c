import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from pydantic import TypeAdapter, ValidationError

from einlayers.errors import FieldError
from einlayers.taxonomy import Taxonomy
from einlayers.theta import NAMED
from search.axes import Axes, Bounds
from search.cube import MixtureAxes, WholeRange
from search.plan import Plan, Run
from search.proxies.char_lm import CharLM, FileCorpus
from search.proxies.registry import ProxySpec
from search.proxies.regression import Regression
from search.proxies.shapes import GroupName, GroupThetas, Mixture, ModelCost
from search.racing import Racing
from search.sampling import CmaEs, Gp, Grid, NsgaII, Qmc, Random, RayTune, SamplerSpec, Tpe
from search.space import SUBSPACES
from search.spec import Budget, Constraints, Objective, ObjectiveName, Resources, SearchSpec, Space
from search.stopping import Convergence, Extrapolation, Hyperband, MedianRule, NoPruner, PrunerSpec, SuccessiveHalving
from search.structure import Structure, structure_of

NO_WHOLE_NUMBER = (math.nan, math.inf, -1, 1.5, 2.0, True, None, "2", 2**64)
NO_NUMBER = [
    *(pytest.param(value, id=repr(value)) for value in (math.nan, math.inf, -math.inf, -1, True, "2")),
    pytest.param(10**400, id="too large for a float"),
]
SEVERAL = (Objective(), Objective(metric="params"), Objective(metric="macs"))
BOUNDS = [f"{metric}_{end}" for metric in ("omega", "psi", "nu", "params", "macs") for end in ("min", "max")]
BOUNDS.append("padding_max")

SPEC = TypeAdapter(SearchSpec)


def _spec(**changes: object) -> SearchSpec:
    return SearchSpec(**{"name": "first", "budget": Budget(max_trials=8)} | changes)  # type: ignore[arg-type]


def _refused(field: str, make: Callable[[], object]) -> FieldError:
    with pytest.raises(FieldError) as caught:
        make()
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: expected {caught.value.expected}, got ")
    return caught.value


def _structure(taxonomy: Taxonomy, cost: ModelCost, padding: float = 0.0) -> Structure:
    return replace(structure_of(NAMED["btt"], CharLM()), taxonomy=taxonomy, cost=cost, padding=padding)


class TestSearchSpec:
    def test_needs_a_name_and_a_budget_only(self) -> None:
        spec = _spec()
        assert (spec.proxy, spec.space, spec.sampler, spec.pruner) == (CharLM(), Space(), Gp(), NoPruner())
        assert (spec.objectives, spec.replicates, spec.concurrency) == ((Objective(),), 1, 2)
        assert spec.resources == Resources(cpus=1, gpus=0)

    @pytest.mark.parametrize(
        "name",
        ["", "x" * 201, "a\0b", "\ud800", "two\nlines", "tab\t", "\x7f", "\u202ereversed", "\ufeffmark"],
        ids=ascii,
    )
    def test_refuses_a_name_that_cannot_be_stored_or_shown(self, name: str) -> None:
        error = _refused("name", lambda: _spec(name=name))
        assert error.expected == "1 to 200 printable characters"
        str(error).encode("utf-8")

    @pytest.mark.parametrize("name", ["x", "x" * 200, "search no. 2 (btt)", "Größe β → δ", "探索", "🔎"])
    def test_takes_any_printable_name(self, name: str) -> None:
        assert _spec(name=name).name == name

    @pytest.mark.parametrize("value", [0, *NO_WHOLE_NUMBER])
    @pytest.mark.parametrize("field", ["replicates", "concurrency"])
    def test_refuses_a_count_that_is_none(self, field: str, value: object) -> None:
        assert _refused(field, lambda: _spec(**{field: value})).got is value

    @pytest.mark.parametrize(("field", "value"), [("replicates", 101), ("concurrency", 1025)])
    def test_refuses_more_than_it_can_run(self, field: str, value: int) -> None:
        _refused(field, lambda: _spec(**{field: value}))

    @pytest.mark.parametrize(
        "names", [[], ["params"], ["params", "loss"], ["loss", "loss"], ["loss", "macs", "macs"]], ids=str
    )
    def test_minimises_the_loss_first_and_every_metric_once(self, names: list[ObjectiveName]) -> None:
        error = _refused("objectives", lambda: _spec(objectives=tuple(Objective(metric=name) for name in names)))
        assert str(error) == f"objectives: expected the loss first, and every metric once, got {names}"

    @pytest.mark.parametrize("sampler", [CmaEs(), RayTune()], ids=["cma-es", "ray-tune"])
    def test_of_several_objectives_needs_a_sampler_that_takes_them(self, sampler: SamplerSpec) -> None:
        error = _refused("sampler", lambda: _spec(objectives=SEVERAL, sampler=sampler))
        assert error.expected == "one that takes several objectives: gp, tpe, nsga-ii, qmc, random or grid"
        for able in (Gp(), Tpe(), NsgaII(), Qmc(), Random(), Grid()):
            assert _spec(objectives=SEVERAL, sampler=able).other_metrics == ("params", "macs")

    @pytest.mark.parametrize(
        ("names", "measures"),
        [
            (("loss",), False),
            (("loss", "params", "macs"), False),
            (("loss", "latency"), True),
            (("loss", "macs", "peak_memory"), True),
        ],
    )
    def test_measures_steps_where_an_objective_needs_it(self, names: tuple[ObjectiveName, ...], measures: bool) -> None:
        assert _spec(objectives=tuple(Objective(metric=name) for name in names)).measures_steps == measures

    def test_of_several_objectives_does_not_converge(self) -> None:
        _refused("convergence", lambda: _spec(objectives=SEVERAL, convergence=Convergence(patience=1)))

    def test_does_not_race_for_a_front_nor_beside_a_plan(self) -> None:
        error = _refused("racing", lambda: _spec(objectives=SEVERAL, racing=Racing()))
        assert error.expected == "none for several objectives: a front has no single best"
        error = _refused("racing", lambda: _spec(sampler=Plan(runs=(Run(theta=NAMED["btt"]),)), racing=Racing()))
        assert error.expected == "none: a plan lists its replicates"

    @pytest.mark.parametrize("replicates", [3, 4])
    def test_races_beyond_what_every_structure_gets(self, replicates: int) -> None:
        error = _refused("racing", lambda: _spec(replicates=replicates, racing=Racing(max_replicates=3)))
        assert error.expected.startswith(f"max_replicates above replicates, which is {replicates}")
        assert _spec(replicates=2, racing=Racing(max_replicates=3)).racing == Racing()

    def test_wants_two_seeds_of_the_best_where_more_than_one_was_asked_for(self) -> None:
        specs = [_spec(), _spec(replicates=2), _spec(replicates=9), _spec(racing=Racing())]
        assert [spec.seeds_wanted for spec in specs] == [1, 2, 2, 2]


class TestBudget:
    @pytest.mark.parametrize("value", [0, 100_001, *(value for value in NO_WHOLE_NUMBER if value is not None)])
    def test_refuses_a_number_of_trials_that_is_none(self, value: object) -> None:
        error = _refused("max_trials", lambda: Budget(max_trials=value))  # type: ignore[arg-type]  # the point
        assert error.expected == "a whole number from 1 to 100000"

    def test_takes_one_trial(self) -> None:
        assert Budget(max_trials=1).max_trials == 1

    @pytest.mark.parametrize("value", [0.5, -1, 1e10, float("nan"), float("inf"), True])
    def test_refuses_a_time_that_is_none(self, value: float) -> None:
        _refused("max_seconds", lambda: Budget(max_seconds=value))

    @pytest.mark.parametrize("value", [0, 1e5, 1e27, float("nan"), True])
    def test_refuses_compute_that_is_none(self, value: float) -> None:
        _refused("max_train_flops", lambda: Budget(max_train_flops=value))

    def test_limits_something(self) -> None:
        error = _refused("max_trials", lambda: Budget(max_failures=3))
        assert error.expected == "max_trials, max_seconds or max_train_flops to be given"

    @pytest.mark.parametrize(
        ("budget", "num_trials"),
        [
            (Budget(max_trials=5), 5),
            (Budget(max_seconds=60), None),
            (Budget(max_train_flops=3e9), 3),
            (Budget(max_train_flops=2.9999e9), 2),
            (Budget(max_trials=2, max_train_flops=3e9), 2),
            (Budget(max_trials=9, max_train_flops=3e9), 3),
        ],
    )
    def test_pays_for_whole_trials(self, budget: Budget, num_trials: int | None) -> None:
        assert budget.num_trials(1e9) == num_trials

    def test_of_three_thirds_pays_for_three(self) -> None:
        third = 1e11 / 3
        assert Budget(max_train_flops=third + third + third).num_trials(third) == 3

    def test_that_pays_for_no_trial_is_refused(self) -> None:
        error = _refused("budget", lambda: _spec(budget=Budget(max_train_flops=1e10)))
        assert error.expected == "max_train_flops for at least one trial, which takes 1e+11"


class TestSamplers:
    @pytest.mark.parametrize("seed", [2**63, *NO_WHOLE_NUMBER])
    @pytest.mark.parametrize("kind", [Tpe, Gp, CmaEs, NsgaII, Qmc, Random, RayTune, Grid])
    def test_refuse_a_seed_that_a_database_cannot_hold(self, kind: Callable[..., object], seed: object) -> None:
        _refused("seed", lambda: kind(seed=seed))

    @pytest.mark.parametrize("kind", [Tpe, Gp, CmaEs, NsgaII, Qmc, Random, RayTune, Grid])
    def test_take_the_largest_seed(self, kind: Callable[..., SamplerSpec]) -> None:
        assert kind(seed=2**63 - 1).seed == 2**63 - 1

    def test_of_ray_tune_are_a_closed_list(self) -> None:
        error = _refused("searcher", lambda: RayTune(searcher="os.system"))  # type: ignore[arg-type]  # the point of the test
        assert error.expected == "one of ('optuna', 'hyperopt')"

    @pytest.mark.parametrize("value", [0, 100_001, *NO_WHOLE_NUMBER])
    def test_refuse_a_start_without_trials(self, value: object) -> None:
        _refused("startup_trials", lambda: Tpe(startup_trials=value))  # type: ignore[arg-type]  # the point of the test


class TestPruners:
    @pytest.mark.parametrize("reduction", [1, 3, 8, 2.0, "2", None])
    @pytest.mark.parametrize("kind", [SuccessiveHalving, Hyperband])
    def test_reduce_to_points_that_curves_have(self, kind: Callable[..., PrunerSpec], reduction: object) -> None:
        assert {kind(reduction=2), kind(reduction=4), kind()} == {kind(reduction=2), kind(reduction=4)}
        _refused("reduction", lambda: kind(reduction=reduction))

    @pytest.mark.parametrize("share", [0, 1 / 17, 0.51, 1, math.nan])
    @pytest.mark.parametrize("kind", [SuccessiveHalving, Hyperband, MedianRule, Extrapolation])
    def test_begin_where_curves_do_and_before_they_end(self, kind: Callable[..., PrunerSpec], share: float) -> None:
        _refused("min_share", lambda: kind(min_share=share))

    @pytest.mark.parametrize("count", [0, 10_001, *NO_WHOLE_NUMBER])
    @pytest.mark.parametrize("kind", [SuccessiveHalving, Hyperband, MedianRule, Extrapolation])
    def test_compare_with_some_structures(self, kind: Callable[..., PrunerSpec], count: object) -> None:
        _refused("startup_structures", lambda: kind(startup_structures=count))

    @pytest.mark.parametrize("count", [1, 2])
    def test_learn_how_curves_go_on_from_three_at_least(self, count: int) -> None:
        assert Extrapolation(startup_structures=3).startup_structures == 3
        _refused("startup_structures", lambda: Extrapolation(startup_structures=count))
        _refused("min_share", lambda: Extrapolation(min_share=1 / 16))

    @pytest.mark.parametrize("margin", [0, -1, 101, math.nan, "2"])
    def test_have_a_margin_of_some_standard_deviations(self, margin: object) -> None:
        _refused("margin", lambda: Extrapolation(margin=margin))  # type: ignore[arg-type]  # the point of the test

    def test_leave_plans_alone(self) -> None:
        plan = Plan(runs=(Run(theta=NAMED["btt"]),))
        error = _refused("pruner", lambda: _spec(sampler=plan, pruner=MedianRule()))
        assert error.expected == "none: what a plan lists is measured whole"


class TestConvergence:
    @pytest.mark.parametrize("patience", [0, 100_001, *NO_WHOLE_NUMBER])
    def test_is_seen_by_some_trials(self, patience: object) -> None:
        _refused("patience", lambda: Convergence(patience=patience))  # type: ignore[arg-type]  # the point of the test

    @pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
    def test_is_about_a_share_of_the_loss(self, share: float) -> None:
        _refused("min_improvement", lambda: Convergence(patience=1, min_improvement=share))

    def test_leaves_plans_alone(self) -> None:
        plan = Plan(runs=(Run(theta=NAMED["btt"]),))
        _refused("convergence", lambda: _spec(sampler=plan, convergence=Convergence(patience=1)))


class TestSpace:
    def test_refuses_an_unknown_subspace_and_lists_the_known_ones(self) -> None:
        error = _refused("subspace", lambda: Space(subspace="butterfly"))  # type: ignore[arg-type]  # the point of the test
        assert error.expected == "one of full, btt, full-rank-btt, low-rank, kronecker, tensor-train, monarch"
        assert error.got == "butterfly"

    @pytest.mark.parametrize("seed", ["einsum", "", "BTT", "\0"])
    def test_refuses_an_unknown_seed_and_names_it(self, seed: str) -> None:
        error = _refused("seeds", lambda: Space(seeds=("dense", seed)))  # type: ignore[arg-type]  # the point of the test
        assert error.got == seed
        assert "dense, low-rank, kronecker, tensor-train, monarch, btt" in error.expected

    def test_refuses_a_seed_twice(self) -> None:
        assert _refused("seeds", lambda: Space(seeds=("btt", "dense", "btt"))).expected == "every design once"

    @pytest.mark.parametrize("tie", ["alpha=beta", "phi=gamma", "", "gamma"])
    def test_refuses_an_unknown_tie(self, tie: str) -> None:
        error = _refused("ties", lambda: Space(ties=("gamma=phi", tie)))  # type: ignore[arg-type]  # the point of the test
        assert error.expected == "pairs from gamma=phi, beta=delta, alpha=epsilon"

    def test_refuses_a_tie_twice(self) -> None:
        assert _refused("ties", lambda: Space(ties=("gamma=phi", "gamma=phi"))).expected == "every pair once"

    def test_without_bounds_is_the_subspace(self) -> None:
        for name, region in SUBSPACES.items():
            assert Space(subspace=name).region == region  # type: ignore[arg-type]  # a name of the registry

    def test_with_bounds_and_ties_is_the_part_of_the_subspace_that_keeps_them(self) -> None:
        space = Space(
            subspace="btt", axes=Axes(gamma=Bounds(min=0.25), rho=Bounds(min=0.1, max=0.1)), ties=("gamma=phi",)
        )
        assert space.region.num_coordinates == 1
        theta = space.region.to_theta((0.5,))
        assert theta.exponents == pytest.approx((0.425, 0, 0.575, 0, 0.425, 0.575, 0.1))

    @pytest.mark.parametrize(
        ("space", "field", "expected"),
        [
            (
                {"subspace": "btt", "axes": Axes(beta=Bounds(min=0.25))},
                "axes",
                "bounds of beta that meet 0 to 0, which is what btt leaves",
            ),
            (
                {"axes": Axes(alpha=Bounds(min=0.75), gamma=Bounds(min=0.5, max=0.625))},
                "axes",
                "bounds of gamma that meet 0 to 0.25, which is what full with alpha from 0.75 to 1 leaves",
            ),
            (
                {"subspace": "monarch", "axes": Axes(gamma=Bounds(min=0.75))},
                "axes",
                "bounds of gamma that meet 0 to 0.5, which is what monarch leaves",
            ),
            (
                {"axes": Axes(gamma=Bounds(max=0.25), phi=Bounds(min=0.5)), "ties": ("gamma=phi",)},
                "ties",
                "ties that can be kept with gamma from 0 to 0.25 and phi from 0.5 to 1, "
                "in full with gamma from 0 to 0.25 with phi from 0.5 to 1",
            ),
        ],
        ids=["a fixed axis", "a sum", "monarch", "a tie"],
    )
    def test_that_is_empty_is_refused_with_what_is_left(
        self, space: dict[str, object], field: str, expected: str
    ) -> None:
        assert _refused(field, lambda: Space(**space)).expected == expected  # type: ignore[arg-type]  # fields of a space


class TestAxes:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1, True, "0.5", None])
    @pytest.mark.parametrize("end", ["min", "max"])
    def test_refuse_a_bound_that_no_exponent_has(self, end: str, value: object) -> None:
        error = _refused(end, lambda: Bounds(**{end: value}))  # type: ignore[arg-type]  # the point of the test
        assert error.expected == "a number from 0 to 1"

    def test_refuse_bounds_the_wrong_way_round(self) -> None:
        assert _refused("max", lambda: Bounds(min=0.5, max=0.25)).expected == "at least min, which is 0.5"

    def test_are_fixed_by_a_number_in_json(self) -> None:
        space = TypeAdapter(Space).validate_json('{"axes": {"gamma": {"min": 0.125}, "phi": 0.25, "rho": 0}}')
        fixed = Axes(gamma=Bounds(min=0.125), phi=Bounds(min=0.25, max=0.25), rho=Bounds(min=0, max=0))
        assert space == Space(axes=fixed)


class TestMixtureOfTheSpace:
    AXES = MixtureAxes(num_experts=WholeRange(min=2, max=16), top_k=WholeRange(min=1, max=4))
    SPARSE = CharLM(mixture=Mixture(num_experts=8, top_k=2))

    def test_adds_its_coordinates(self) -> None:
        plain, mixed = _spec(proxy=self.SPARSE), _spec(proxy=self.SPARSE, space=Space(mixture=self.AXES))
        assert mixed.cube.num_coordinates == plain.cube.num_coordinates + 2

    def test_is_refused_without_a_mixture(self) -> None:
        error = _refused("space", lambda: _spec(space=Space(mixture=self.AXES)))
        assert "of mixture none where the proxy has no mixture" in error.expected

    @pytest.mark.parametrize(
        ("axes", "why"),
        [
            (MixtureAxes(num_experts=WholeRange(min=1, max=16)), "of num_experts at least 2 experts"),
            (MixtureAxes(top_k=WholeRange(min=1, max=9)), "of top_k at most the 8 experts that there are"),
        ],
    )
    def test_is_refused_where_the_proxy_contradicts_it(self, axes: MixtureAxes, why: str) -> None:
        assert why in _refused("space", lambda: _spec(proxy=self.SPARSE, space=Space(mixture=axes))).expected

    @pytest.mark.parametrize("sampler", [Grid(), Plan(runs=(Run(theta=NAMED["btt"]),))], ids=["grid", "plan"])
    def test_is_refused_for_lists_of_structures(self, sampler: SamplerSpec) -> None:
        error = _refused("sampler", lambda: _spec(proxy=self.SPARSE, space=Space(mixture=self.AXES), sampler=sampler))
        assert error.got == sampler.kind

    def test_is_json(self) -> None:
        text = '{"name": "x", "budget": {"max_trials": 1}, "proxy": {"kind": "char_lm", "mixture": {}}, "space": %s}'
        space = '{"mixture": {"num_experts": {"min": 2, "max": 16}, "top_k": {"min": 1, "max": 4}}}'
        sent = SPEC.validate_json(text % space)
        assert sent.space.mixture == self.AXES
        assert SPEC.validate_json(SPEC.dump_json(sent)) == sent
        for wrong in ('{"mixture": {}}', '{"mixture": {"top_k": 2}}', '{"mixture": {"top_k": {"min": 2}}}'):
            with pytest.raises(ValidationError):
                SPEC.validate_json(text % wrong)


class TestGroupsOfTheSpace:
    @pytest.mark.parametrize("group", ["attention", "feed_forward"])
    def test_add_the_coordinates_of_the_region(self, group: GroupName) -> None:
        assert _spec(space=Space(groups=(group,))).cube.num_coordinates == 2 * _spec().cube.num_coordinates

    @pytest.mark.parametrize(
        ("proxy", "groups", "free"),
        [
            (Regression(), ("feed_forward",), "feed_forward"),
            (Regression(), ("attention",), "feed_forward"),
            (CharLM(), ("attention", "feed_forward"), "attention, feed_forward"),
            (CharLM(head_aligned_rank=1), ("attention",), "feed_forward"),
            (CharLM(thetas=GroupThetas(attention=NAMED["dense"])), ("attention",), "feed_forward"),
            (CharLM(thetas=GroupThetas(attention=NAMED["dense"])), ("feed_forward",), "feed_forward"),
        ],
    )
    def test_are_refused_where_they_leave_nothing_or_are_not_there(
        self, proxy: ProxySpec, groups: tuple[GroupName, ...], free: str
    ) -> None:
        error = _refused("space", lambda: _spec(proxy=proxy, space=Space(groups=groups)))
        assert error.expected == f"groups that are some, but not all, of those that the proxy leaves open: {free}"

    def test_are_there_once(self) -> None:
        assert _refused("groups", lambda: Space(groups=("attention", "attention"))).expected == "every group once"

    @pytest.mark.parametrize("sampler", [Grid(), Plan(runs=(Run(theta=NAMED["btt"]),))], ids=["grid", "plan"])
    def test_are_refused_for_lists_of_structures(self, sampler: SamplerSpec) -> None:
        _refused("sampler", lambda: _spec(space=Space(groups=("attention",)), sampler=sampler))


class TestConstraints:
    @pytest.mark.parametrize("value", NO_NUMBER)
    @pytest.mark.parametrize("bound", BOUNDS)
    def test_refuse_a_bound_that_is_none(self, bound: str, value: object) -> None:
        _refused(bound, lambda: Constraints(**{bound: value}))  # type: ignore[arg-type]  # the point of the test

    @pytest.mark.parametrize(
        ("bound", "limit"),
        [
            *(("omega_max", 2), ("psi_min", 1), ("nu_max", 2), ("params_min", 1e15), ("macs_max", 1e15)),
            ("padding_max", 1),
        ],
    )
    def test_refuse_a_bound_beyond_what_can_be(self, bound: str, limit: float) -> None:
        assert getattr(Constraints(**{bound: limit}), bound) == limit
        assert _refused(bound, lambda: Constraints(**{bound: limit * 1.01})).expected == f"a number from 0 to {limit:g}"

    @pytest.mark.parametrize("metric", ["omega", "psi", "nu", "params", "macs"])
    def test_refuse_bounds_that_leave_nothing_between_them(self, metric: str) -> None:
        error = _refused(f"{metric}_max", lambda: Constraints(**{f"{metric}_min": 0.75, f"{metric}_max": 0.5}))
        assert str(error) == f"{metric}_max: expected at least {metric}_min, which is 0.75, got 0.5"
        Constraints(**{f"{metric}_min": 0.5, f"{metric}_max": 0.5})

    @pytest.mark.parametrize(
        ("metric", "value"), [("omega", 0.25), ("psi", 0.5), ("nu", 0.75), ("params", 1000), ("macs", 3000)]
    )
    def test_allow_what_lies_between_the_bounds_and_on_them(self, metric: str, value: float) -> None:
        structure = _structure(Taxonomy(omega=0.25, psi=0.5, nu=0.75), ModelCost(params=1000, macs=3000))
        less, more = value * 0.999, min(1, value * 1.001) if metric == "psi" else value * 1.001
        assert Constraints(**{f"{metric}_min": value, f"{metric}_max": value}).allow(structure)
        assert Constraints(**{f"{metric}_min": less, f"{metric}_max": more}).allow(structure)
        assert not Constraints(**{f"{metric}_min": more}).allow(structure)
        assert not Constraints(**{f"{metric}_max": less}).allow(structure)

    def test_take_zero_for_a_bound_and_not_for_its_absence(self) -> None:
        shared = _structure(Taxonomy(omega=0.25, psi=0.5, nu=0.75), ModelCost(params=1, macs=1))
        assert not Constraints(omega_max=0).allow(shared)
        assert Constraints().allow(shared)

    def test_allow_padding_up_to_a_share(self) -> None:
        padded = _structure(Taxonomy(omega=0, psi=1, nu=1), ModelCost(params=1, macs=1), padding=0.125)
        assert Constraints(padding_max=0.125).allow(padded)
        assert not Constraints(padding_max=0.12).allow(padded)
        with pytest.raises(TypeError):
            Constraints(padding_min=0.1)  # type: ignore[call-arg]  # nobody wants padding


class TestResources:
    @pytest.mark.parametrize("value", NO_NUMBER)
    @pytest.mark.parametrize("field", ["cpus", "gpus"])
    def test_refuse_an_amount_that_is_none(self, field: str, value: object) -> None:
        _refused(field, lambda: Resources(**{field: value}))  # type: ignore[arg-type]  # the point of the test

    @pytest.mark.parametrize("gpus", [1.5, 1.001, 2.25])
    def test_refuse_a_share_of_more_than_one_gpu(self, gpus: float) -> None:
        assert _refused("gpus", lambda: Resources(gpus=gpus)).got == gpus

    @pytest.mark.parametrize("gpus", [0, 0.125, 1, 1.0, 2, 64])
    def test_take_a_share_of_one_gpu_or_whole_ones(self, gpus: float) -> None:
        assert Resources(gpus=gpus).gpus == gpus

    def test_refuse_to_run_on_nothing(self) -> None:
        _refused("cpus", lambda: Resources(cpus=0, gpus=0))
        assert Resources(cpus=0, gpus=0.5).cpus == 0


class TestJson:
    def test_returns_what_was_sent(self) -> None:
        spec = _spec(
            proxy=CharLM(width=48, corpus=FileCorpus(path="plays.txt")),
            space=Space(
                subspace="btt",
                axes=Axes(gamma=Bounds(min=0.1, max=0.4)),
                ties=("gamma=phi",),
                constraints=Constraints(psi_min=1, params_max=1e6, padding_max=0.1),
                seeds=("dense", "btt"),
            ),
            sampler=Random(seed=2**63 - 1),
            replicates=3,
            racing=Racing(max_replicates=5, confidence=0.9, sd=0.01),
            resources=Resources(gpus=0.25),
        )
        assert SPEC.validate_json(SPEC.dump_json(spec)) == spec

    def test_fills_in_what_was_left_out(self) -> None:
        assert SPEC.validate_json('{"name": "first", "budget": {"max_trials": 8}}') == _spec()

    @pytest.mark.parametrize(
        "text",
        [
            '{"name": "first", "budget": {"max_trials": 8}, "budgets": 1}',
            '{"name": "first", "budget": {"max_trials": 8, "hours": 1}}',
            '{"name": "first", "budget": {"max_trials": 8}, "sampler": {"kind": "random", "startup_trials": 3}}',
            '{"name": "first", "budget": {"max_trials": 8}, "sampler": {"kind": "annealing"}}',
            '{"name": "first", "budget": {"max_trials": 8}, "proxy": {"depht": 3}}',
            '{"name": "first", "budget": {"max_trials": 8}, "proxy": {"train_flops": NaN}}',
            '{"name": "first", "budget": {"max_trials": 8}, "space": {"constraints": {"macs_max": Infinity}}}',
            '{"name": "first", "budget": {"max_trials": 0}}',
            '{"budget": {"max_trials": 8}}',
        ],
    )
    def test_refuses_misspelt_unknown_and_impossible_values(self, text: str) -> None:
        with pytest.raises(ValidationError):
            SPEC.validate_json(text)

    def test_carries_our_message_to_the_user(self) -> None:
        with pytest.raises(ValidationError, match="gpus: expected a share of one GPU"):
            SPEC.validate_json('{"name": "first", "budget": {"max_trials": 8}, "resources": {"gpus": 1.5}}')
