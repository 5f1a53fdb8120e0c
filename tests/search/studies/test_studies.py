"""What studies plan, and what they refuse to plan."""

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import pytest
from pydantic import TypeAdapter

from einlayers.errors import FieldError
from einlayers.taxonomy import taxonomy
from einlayers.theta import NAMED
from search.plan import Plan
from search.proxies.char_lm import CharLM
from search.proxies.regression import Regression
from search.spec import SearchSpec
from search.structure import structure_of
from search.studies.baseline import Baseline
from search.studies.calibration import Calibration
from search.studies.fidelity import FidelityStudy, reference_of
from search.studies.registry import StudySpec
from search.studies.scaling import ScalingStudy
from search.studies.structures import REFERENCE_SET, RandomStructures, Spread
from search.studies.transfer import TransferCheck

PROXY = Regression(train_flops=1e10)
STUDIES: tuple[StudySpec, ...] = (
    Baseline(name="a", proxy=PROXY),
    Calibration(name="b", proxy=PROXY),
    FidelityStudy(name="c", proxy=PROXY),
    ScalingStudy(name="d", proxy=PROXY),
    TransferCheck(name="e", proxy=PROXY),
)
EACH = pytest.mark.parametrize("study", STUDIES, ids=[study.kind for study in STUDIES])


def runs_of(spec: SearchSpec) -> Plan:
    assert isinstance(spec.sampler, Plan)
    return spec.sampler


class TestEveryStudy:
    @EACH
    def test_is_read_back_from_its_json(self, study: StudySpec) -> None:
        adapter: TypeAdapter[StudySpec] = TypeAdapter(StudySpec)
        assert adapter.validate_json(json.dumps(asdict(study))) == study

    @EACH
    def test_plans_trainings_of_its_proxy_each_with_a_seed_of_its_own(self, study: StudySpec) -> None:
        searches = study.searches()
        assert searches
        for role, spec in searches.items():
            assert spec.name == f"{study.name}: {role}"
            assert spec.num_trials(spec.budget) == len(runs_of(spec).runs)

    @EACH
    def test_plans_every_run_equally_often(self, study: StudySpec) -> None:
        for spec in study.searches().values():
            assert len(set(Counter(runs_of(spec).runs).values())) == 1

    @EACH
    @pytest.mark.parametrize(
        ("field", "value"),
        [("name", ""), ("name", "x" * 151), ("name", "a\nb"), ("seed", -1), ("concurrency", 0), ("replicates", 0)],
    )
    def test_refuses_what_makes_no_sense(self, study: StudySpec, field: str, value: object) -> None:
        with pytest.raises(FieldError, match=f"^{field}: expected"):
            replace(study, **{field: value})  # type: ignore[arg-type]  # the point of the test


class TestFidelityStudy:
    def test_takes_the_truth_from_four_times_the_compute_at_widths_that_suit_each_structure(self) -> None:
        fixed = Regression(width=64, dense_width=24, train_flops=1e10)
        truth = reference_of(fixed)
        assert (truth.width, truth.train_flops) == (None, 4e10)
        ratio = truth.cost(NAMED["dense"], truth.dense_width).macs / fixed.cost(NAMED["dense"], 24).macs
        assert ratio == pytest.approx(2, rel=0.1)

    def test_brackets_widths_by_half_and_twice_the_macs(self) -> None:
        runs = FidelityStudy(name="x", proxy=PROXY).parts()["neighbours"].runs
        for theta in REFERENCE_SET:
            width = PROXY.width_for(theta)
            narrower, wider = (run.width for run in runs if run.theta == theta)
            assert narrower is not None
            assert wider is not None
            assert narrower < width < wider
            macs = PROXY.cost(theta, width).macs
            assert PROXY.cost(theta, narrower).macs == pytest.approx(macs / 2, rel=0.25)
            assert PROXY.cost(theta, wider).macs == pytest.approx(2 * macs, rel=0.25)

    def test_has_a_reference_of_three_widths_each_where_that_is_wanted(self) -> None:
        assert "reference_neighbours" not in FidelityStudy(name="x", proxy=PROXY).parts()
        text = CharLM(dense_width=64)
        part = FidelityStudy(name="x", proxy=PROXY, reference=text, reference_neighbours=True).parts()[
            "reference_neighbours"
        ]
        assert part.proxy == text
        assert [run.theta for run in part.runs[::2]] == list(REFERENCE_SET)
        for narrower, wider in zip(part.runs[::2], part.runs[1::2], strict=True):
            width = text.width_for(narrower.theta)
            assert narrower.width is not None
            assert wider.width is not None
            assert narrower.width < width < wider.width
            own, less, more = (text.cost(narrower.theta, each).macs for each in (width, narrower.width, wider.width))
            assert own / less == pytest.approx(4 / 3, rel=0.15)
            assert more / own == pytest.approx(4 / 3, rel=0.15)

    def test_draws_the_same_random_structures_for_a_proxy_of_one_width(self) -> None:
        drawn = FidelityStudy(name="x", proxy=PROXY, structures=RandomStructures(count=6)).thetas
        assert (
            drawn
            == FidelityStudy(name="x", proxy=replace(PROXY, width=40), structures=RandomStructures(count=6)).thetas
        )

    def test_gives_equal_steps_as_many_steps_as_dense_takes(self) -> None:
        proxy = replace(PROXY, width=48)
        study = FidelityStudy(name="x", proxy=proxy, scoring="equal_steps")
        runs = runs_of(study.searches()["proxy"]).runs
        steps = {run.on(proxy).num_steps(proxy.cost(run.theta, 48).macs) for run in runs}
        assert steps == {proxy.num_steps(proxy.cost(NAMED["dense"], 48).macs)}
        assert len({run.train_flops for run in runs}) > 4

    def test_refuses_equal_steps_of_unequal_models(self) -> None:
        with pytest.raises(FieldError, match="scoring: expected equal_compute, or a proxy with a width for all"):
            FidelityStudy(name="x", proxy=PROXY, scoring="equal_steps")

    @pytest.mark.parametrize("structures", [(), REFERENCE_SET[:2], (*REFERENCE_SET, REFERENCE_SET[0])])
    def test_refuses_structures_that_have_no_order(self, structures: Any) -> None:
        with pytest.raises(FieldError, match="structures: expected"):
            FidelityStudy(name="x", structures=structures)


class TestStructures:
    def test_of_the_reference_set_are_of_every_group(self) -> None:
        assert REFERENCE_SET[0].is_dense
        groups = [taxonomy(theta) for theta in REFERENCE_SET]
        assert sum(group.omega == 0 and group.psi == 1 for group in groups) >= 2
        assert sum(group.psi < 1 for group in groups) >= 2
        assert sum(group.omega > 0 for group in groups) >= 2

    @pytest.mark.parametrize("spread", ["cube", "groups"])
    def test_drawn_are_all_different_and_none_is_dense(self, spread: Spread) -> None:
        drawn = set(RandomStructures(count=500, seed=0, spread=spread))
        assert len(drawn) == 500
        assert not any(theta.is_dense for theta in drawn)

    @pytest.mark.parametrize("spread", ["cube", "groups"])
    def test_drawn_for_a_proxy_are_models_of_their_own_there(self, spread: Spread) -> None:
        proxy, structures = Regression(dense_width=8), RandomStructures(count=40, seed=0, spread=spread)
        drawn = structures.on(proxy)
        digests = [structure_of(theta, proxy).digest for theta in (NAMED["dense"], *drawn)]
        assert len(set(digests)) == len(digests) == 41
        assert drawn != tuple(structures)
        # Those that are left out are the only difference.
        further = list(replace(structures, count=200))
        assert [theta for theta in further if theta in drawn] == list(drawn)

    def test_that_a_proxy_has_not_are_refused(self) -> None:
        with pytest.raises(FieldError, match="structures: expected no more random structures than differ on the proxy"):
            RandomStructures(count=500).on(Regression(dense_width=1))

    def test_drawn_by_group_are_as_many_of_each_with_exponents_of_thirds_and_quarters(self) -> None:
        drawn = list(RandomStructures(count=24, seed=3, spread="groups"))
        found = [taxonomy(theta) for theta in drawn]
        groups = Counter((each.omega > 1e-9, each.psi < 1 - 1e-9) for each in found)
        assert sorted(groups.values()) == [6, 6, 6, 6]
        twelfths = [12 * exponent for theta in drawn for exponent in theta.exponents]
        assert twelfths == pytest.approx([round(each) for each in twelfths])
        assert {round(each) for each in twelfths} <= {0, 3, 4, 6, 8, 9, 12}

    def test_drawn_by_an_unknown_spread_are_refused(self) -> None:
        with pytest.raises(FieldError, match="one of cube, groups"):
            RandomStructures(count=24, spread="sphere")  # type: ignore[arg-type]

    def test_drawn_from_a_seed_are_the_same_for_ever(self) -> None:
        drawn = list(RandomStructures(count=5, seed=1))
        assert drawn == list(RandomStructures(count=5, seed=1))
        assert drawn != list(RandomStructures(count=5, seed=2))
        assert all(theta.is_canonical for theta in drawn)
        assert str(drawn[0]) == "(0.595|0.405|0|0.0271|0.268|0.705|0.099)"


class TestCalibration:
    def test_sweeps_around_the_rate_that_comes_along(self) -> None:
        rates = Calibration(name="x", proxy=CharLM(context=32)).rates
        assert rates == pytest.approx([5e-3 * 2.0**k for k in range(-3, 4)])

    def test_trains_the_dense_model_of_the_base_width(self) -> None:
        study = Calibration(name="x", proxy=CharLM(num_heads=3, base_width=32), warmup_steps=(10, 100))
        searches = study.searches()
        assert [spec.proxy.warmup_steps for spec in searches.values()] == [10, 100]
        for spec in searches.values():
            assert {(run.theta, run.width) for run in runs_of(spec).runs} == {(NAMED["dense"], 33)}

    def test_shows_every_run_as_many_examples_as_the_dense_model_of_the_proxy_sees(self) -> None:
        proxy = Regression(train_flops=1e10, dense_width=20, base_width=64)
        study = Calibration(name="x", proxy=proxy)
        for run in runs_of(study.searches()["warm-up of 50 steps"]).runs:
            on = run.on(proxy)
            steps = on.num_steps(on.cost(NAMED["dense"], 64).macs)
            assert steps == proxy.num_steps(proxy.dense_macs)


class TestScalingStudy:
    def test_always_has_dense_to_compare_with(self) -> None:
        study = ScalingStudy(name="x", structures=(NAMED["btt"],))
        assert study.thetas == (NAMED["dense"], NAMED["btt"])

    def test_has_models_of_the_same_size_of_every_structure(self) -> None:
        study = ScalingStudy(name="x", proxy=Regression(dense_width=48), size_factors=(0.5, 1.0, 2.0))
        proxy = study.proxy
        target = proxy.cost(NAMED["dense"], 48).macs
        for theta in study.thetas:
            sizes = [proxy.cost(theta, width).macs / target for width in study.widths_of(theta)]
            assert sizes == pytest.approx([0.5, 1.0, 2.0], rel=0.1)
        smaller = [proxy.cost(NAMED["dense"], width).macs for width in study.widths_of(NAMED["dense"], 1 / 16)]
        assert smaller == pytest.approx([target / 8, target / 4, target / 2], rel=0.15)


class TestTransferCheck:
    @pytest.mark.parametrize(("field", "value"), [("width_factors", (1.0,)), ("lr_mults", (0.5, 2.0, 4.0))])
    def test_needs_two_widths_and_the_transferred_rate(self, field: str, value: object) -> None:
        with pytest.raises(FieldError, match=f"^{field}: expected"):
            TransferCheck(name="x", **{field: value})  # type: ignore[arg-type]  # the point of the test
