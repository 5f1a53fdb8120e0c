"""The page of ``make fidelity``, of worlds whose truth is known."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, cast

import pytest
from pydantic import TypeAdapter

from benchmarks.fidelity.goals import goals
from benchmarks.fidelity.groups import FULL, LOW_RANK, SHARED, contrasts, group_of
from benchmarks.fidelity.report import report
from benchmarks.fidelity.studies import STUDIES
from einlayers.theta import Theta
from einsearch.answers import Study
from search.analysis.registry import analyse
from search.proxies.shapes import ModelCost
from search.studies.registry import Finding, StudySpec
from search.studies.structures import REFERENCE_SET
from tests.search.studies.synthetic import LossOf, World, sized, worth

SPECS: TypeAdapter[StudySpec] = TypeAdapter(StudySpec)
FINDINGS: TypeAdapter[Finding] = TypeAdapter(Finding)
COVERED = {"exponent of C": 93}


def grouped(theta: Theta, cost: ModelCost, compute: float, lr_mult: float) -> float:
    """What sharing or losing rank costs, at the best rate, and nothing else."""
    return (1 + 0.2 * abs(math.log2(lr_mult))) / worth(theta)


def study_of(name: str, loss_of: LossOf, run_sd: float, structures: tuple[Theta, ...] = ()) -> Study:
    """As the service answers it; of these structures alone, where some are given: an analysis takes seconds for each."""
    return _study_of(name, loss_of, run_sd, structures)


@cache
def _study_of(name: str, loss_of: LossOf, run_sd: float, structures: tuple[Theta, ...]) -> Study:
    body = next(spec for spec in STUDIES if spec["name"] == name)
    fewer = {"structures": [asdict(theta) for theta in structures]} if structures else {}
    spec = SPECS.validate_python({**body, **fewer, "proxy": {**body["proxy"], "base_lr": 5e-3}})
    finding = analyse(spec, World(loss_of, run_sd=run_sd).measure(spec))
    answer = {
        "kind": spec.kind,
        "name": name,
        "reason": None,
        "spec": json.loads(SPECS.dump_json(spec)),
        "finding": json.loads(FINDINGS.dump_json(finding)),
    }
    return cast(Study, answer)


def finding_of(name: str, loss_of: LossOf, run_sd: float, structures: tuple[Theta, ...] = ()) -> Mapping[str, Any]:
    finding = study_of(name, loss_of, run_sd, structures)["finding"]
    assert finding is not None
    return finding


class TestGroups:
    def test_are_those_of_the_taxonomy(self) -> None:
        assert [group_of(theta) for theta in REFERENCE_SET] == [FULL] * 3 + [LOW_RANK] * 2 + [SHARED] * 3

    def test_are_compared_by_seed(self) -> None:
        found = list(contrasts(finding_of("the papers' order", grouped, 0.01)))
        assert [(each.worse, each.better) for each in found] == [(LOW_RANK, FULL), (SHARED, FULL), (SHARED, LOW_RANK)]
        for each in found[:2]:
            worse, better = (self._log_loss(group) for group in (each.worse, each.better))
            assert each.difference.low <= worse - better <= each.difference.high
            assert each.p_value < 0.01
            assert each.same_sign == each.num_seeds == 4

    def test_that_do_not_differ_are_not_told_apart(self) -> None:
        one_of_each = (REFERENCE_SET[1], REFERENCE_SET[3], REFERENCE_SET[5])
        found = list(contrasts(finding_of("the papers' order", lambda *_: 1.0, 0.02, one_of_each)))
        assert len(found) == 3
        for each in found:
            assert each.difference.low < 0 < each.difference.high
            assert each.p_value > 0.05

    @staticmethod
    def _log_loss(group: str) -> float:
        losses = [-math.log(worth(theta)) for theta in REFERENCE_SET if group_of(theta) == group]
        return sum(losses) / len(losses)


class TestGoals:
    def test_are_kept_by_a_proxy_that_tells_the_truth(self) -> None:
        found = list(goals({"screening": finding_of("screening", sized, 0.002)}, COVERED))
        assert {goal.what: goal.is_met for goal in found} == {
            "screening: Spearman between two seeds": True,
            "screening: Spearman between means of 3 replicates": True,
            "screening: CPU-seconds a trial": True,
            "screening: Spearman with four times the compute": True,
            "screening: sd of the log of the loss": True,
            "synthetic runs: intervals that hold the truth, exponent of C": True,
        }

    def test_are_missed_by_noise(self) -> None:
        found = {goal.what: goal for goal in goals({"screening": finding_of("screening", lambda *_: 1.0, 0.1)}, {})}
        assert not found["screening: Spearman between two seeds"].is_met
        assert not found["screening: sd of the log of the loss"].is_met
        assert found["screening: sd of the log of the loss"].bound == "at most 0.03"

    @pytest.mark.parametrize(("covered", "is_met"), [(89, False), (90, True)])
    def test_want_nine_intervals_of_ten_to_hold_the_truth(self, covered: int, is_met: bool) -> None:
        assert [goal.is_met for goal in goals({}, {"exponent of C": covered})] == [is_met]

    def test_want_the_controls_refused(self) -> None:
        (goal,) = goals({"control: fixed width": finding_of("control: fixed width", sized, 0.002)}, {})
        assert (goal.is_met, goal.bound) == (True, "refused")
        accepted = {**finding_of("control: fixed width", sized, 0.002), "truthful": True}
        assert [goal.is_met for goal in goals({"control: fixed width": accepted}, {})] == [False]


class TestReport:
    def test_says_what_was_found_and_what_could_not_be(self) -> None:
        failed = cast(Study, {**study_of("standard", sized, 0.01), "finding": None, "reason": "a trial failed"})
        studies = [study_of("screening", sized, 0.01), study_of("the papers' order", grouped, 0.01), failed]
        page = report(studies, COVERED, "a machine")
        assert "Without a result: standard: a trial failed" in page
        assert "| exponent of C | 93 |" in page
        assert f"| {SHARED} less {FULL} |" in page
        assert page.count("worse than dense at equal tuned compute") >= 5

    def test_does_not_tell_apart_what_is_within_the_noise(self) -> None:
        page = report([study_of("dense or BTT", lambda *_: 1.0, 0.02)], COVERED, "a machine")
        assert page.count("cannot be told from dense") == 2
