"""Searches that end when nothing is to be expected any more."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from einlayers.theta import NAMED
from search.convergence import LEAST_OBSERVED, expected_improvement, has_converged
from search.proposals import PastTrial
from search.proxies.regression import Regression
from search.samplers.base import Observation
from search.space import Unit
from search.spec import Budget, SearchSpec
from search.states import TrialState
from search.stopping import Convergence

Landscape = Callable[[Unit], float]


def _bowl(unit: Unit) -> float:
    return 1 + sum((u - 0.5) ** 2 for u in unit)


def _slope(unit: Unit) -> float:
    return 1 + unit[0]


def _observed(
    landscape: Landscape, number: int, *, lowest: float = 0.0, width: float = 1.0, noise: float = 0.0
) -> list[Observation]:
    """At random points, of which each coordinate is in an interval from ``lowest`` on."""
    draw = random.Random(0)
    units = [tuple(lowest + width * draw.random() for _ in range(3)) for _ in range(number)]
    return [Observation(unit=unit, loss=landscape(unit) * math.exp(draw.gauss(0, noise))) for unit in units]


class TestExpectedImprovement:
    def test_is_unbounded_while_little_is_known(self) -> None:
        known = _observed(_bowl, LEAST_OBSERVED - 1)
        assert expected_improvement([], 0) == expected_improvement(known, 0) == math.inf
        failed = [replace(each, loss=None) for each in _observed(_bowl, 40)]
        assert expected_improvement(failed, 0) == math.inf

    def test_is_large_where_the_slope_goes_on_beyond_what_was_tried(self) -> None:
        # From 1.5 at the edge of what was tried to 1 at the edge of the cube: a third, of which most is foreseen.
        assert 0.1 < expected_improvement(_observed(_slope, 40, lowest=0.5, width=0.5), 0) < 0.4

    @pytest.mark.parametrize("noise", [0.0, 0.02])
    def test_is_small_where_the_bottom_was_found(self, noise: float) -> None:
        found = _observed(_bowl, 40, noise=noise) + _observed(_bowl, 20, lowest=0.45, width=0.1, noise=noise)
        assert 0 <= expected_improvement(found, 0) < 0.01

    def test_of_equal_losses_is_none(self) -> None:
        assert expected_improvement(_observed(lambda _: 2.0, 30), 0) < 1e-12

    def test_is_a_share_of_the_loss_whatever_its_unit(self) -> None:
        known = _observed(_slope, 30, lowest=0.5, width=0.5)
        tenfold = [replace(each, loss=10 * (each.loss or 0)) for each in known]
        assert expected_improvement(tenfold, 0) == pytest.approx(expected_improvement(known, 0), rel=1e-3)

    def test_takes_losses_that_have_no_logarithm(self) -> None:
        assert expected_improvement(_observed(lambda unit: _slope(unit) - 1.6, 40, lowest=0.5, width=0.5), 0) > 0.1


class TestHasConverged:
    SPEC = SearchSpec(name="test", budget=Budget(max_trials=100), proxy=Regression())
    HISTORY = tuple(
        PastTrial(theta=NAMED["btt"], digest=str(n), state=TrialState.COMPLETED, loss=1.0)
        for n in range(LEAST_OBSERVED)
    )

    def test_only_where_the_search_asks_for_it(self) -> None:
        by_patience = replace(self.SPEC, convergence=Convergence(patience=1, min_improvement=0.5))
        by_expectation = replace(self.SPEC, convergence=Convergence(min_improvement=0.5))
        assert not has_converged(self.SPEC, self.HISTORY, ())
        assert not has_converged(by_patience, self.HISTORY, ())
        assert has_converged(by_expectation, self.HISTORY, ())
        assert not has_converged(by_expectation, self.HISTORY[1:], ())
