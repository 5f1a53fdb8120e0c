"""Which trials are stopped early, on paper."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from search.pruning import Climber, Forecast, Verdict, is_rung, judge, point_of
from search.stopping import Extrapolation, Hyperband, MedianRule, NoPruner, PrunerSpec, SuccessiveHalving

HALVING = SuccessiveHalving(startup_structures=3)
POINTS = tuple(2 ** (-k / 2) for k in range(8, -1, -1))


def climbers(*losses: float, final_ratio: float | None = None, seeds: int = 1) -> list[Climber]:
    """Other structures with these losses at a rung, some with a loss at the end."""
    return [
        Climber(
            number=seeds * number + seed,
            digest=f"structure {number}",
            loss=loss,
            final_loss=None if final_ratio is None else final_ratio * loss,
        )
        for number, loss in enumerate(losses)
        for seed in range(seeds)
    ]


def verdict(pruner: PrunerSpec, loss: float, others: list[Climber], *, replicates: int = 1) -> Verdict | None:
    climber = Climber(number=100, digest="this", loss=loss)
    return judge(pruner, climber, others, point=0.25, replicates=replicates)


class TestPoints:
    @pytest.mark.parametrize("point", POINTS)
    def test_are_half_powers_of_two_also_in_whole_steps(self, point: float) -> None:
        for share in (point, 0.9 * point, 1.1 * point):
            assert point_of(share) == pytest.approx(point)


class TestRungs:
    @pytest.mark.parametrize(
        ("pruner", "rungs"),
        [
            (SuccessiveHalving(), [1 / 8, 1 / 4, 1 / 2]),
            (SuccessiveHalving(min_share=1 / 16), [1 / 16, 1 / 8, 1 / 4, 1 / 2]),
            (SuccessiveHalving(reduction=4, min_share=1 / 16), [1 / 16, 1 / 4]),
            (SuccessiveHalving(min_share=0.3), [1 / 2]),
            (MedianRule(min_share=1 / 4), [2**-2, 2**-1.5, 2**-1, 2**-0.5]),
            (Extrapolation(), [2**-2, 2**-1.5, 2**-1, 2**-0.5]),
            (NoPruner(), []),
        ],
    )
    def test_are_shares_of_the_compute(self, pruner: PrunerSpec, rungs: list[float]) -> None:
        assert [point for point in POINTS if is_rung(pruner, 0, point)] == pytest.approx(rungs)

    def test_of_hyperband_begin_later_in_every_bracket_and_never_in_the_last(self) -> None:
        first = [[point for point in POINTS if is_rung(Hyperband(), number, point)] for number in range(5)]
        assert first == [[1 / 8, 1 / 4, 1 / 2], [1 / 4, 1 / 2], [1 / 2], [], [1 / 8, 1 / 4, 1 / 2]]


def curves(*rates: float, noise: float = 0.0) -> list[Climber]:
    """Structures whose losses fall by powers of compute with these rates, at a quarter of it, with noise in turns."""
    return [
        Climber(
            number=number,
            digest=f"structure {number}",
            loss=0.25**-rate,
            earlier_loss=0.125**-rate,
            final_loss=math.exp(noise * (-1) ** number),
        )
        for number, rate in enumerate(rates)
    ]


class TestForecast:
    def test_of_curves_that_are_powers_is_right(self) -> None:
        forecast = Forecast.of(curves(0.1, 0.2, 0.3, 0.5))
        steep = Climber(number=9, digest="steep", loss=2.0 * 0.25**-0.8, earlier_loss=2.0 * 0.125**-0.8)
        assert forecast.final_loss(steep) == pytest.approx(2.0)
        assert forecast.error(steep) == pytest.approx(0.0, abs=1e-9)

    def test_is_a_regression_with_its_error(self) -> None:
        draw = random.Random(0)
        slopes = [draw.gauss(-0.2, 0.05) for _ in range(12)]
        falls = [1.8 * slope + draw.gauss(0, 0.03) for slope in slopes]
        ended = [
            Climber(number=n, digest=str(n), loss=1.0, earlier_loss=math.exp(-slope), final_loss=math.exp(fall))
            for n, (slope, fall) in enumerate(zip(slopes, falls, strict=True))
        ]
        forecast, new = Forecast.of(ended), Climber(number=99, digest="new", loss=3.0, earlier_loss=3 * math.exp(0.35))
        rate, intercept = statistics.linear_regression(slopes, falls)
        left = [fall - rate * slope - intercept for slope, fall in zip(slopes, falls, strict=True)]
        sd = math.sqrt(sum(each * each for each in left) / 10)
        leverage = (-0.35 - statistics.fmean(slopes)) ** 2 / sum((s - statistics.fmean(slopes)) ** 2 for s in slopes)
        assert math.log(forecast.final_loss(new) / 3) == pytest.approx(intercept - 0.35 * rate)
        assert forecast.error(new) == pytest.approx(sd * math.sqrt(1 + 1 / 12 + leverage))

    def test_of_curves_of_one_shape_is_not_made_of_rounding(self) -> None:
        ended = [
            replace(each, loss=k * each.loss, earlier_loss=k * (each.earlier_loss or 0), final_loss=k * each.final_loss)
            for k in (0.3, 0.7, 1.1, 1.9)
            for each in curves(0.2)
            if each.final_loss
        ]
        other = Climber(number=9, digest="other", loss=0.25**-0.2, earlier_loss=0.125**-0.5)
        assert Forecast.of(ended).final_loss(other) == pytest.approx(1.0)

    def test_without_curves_is_the_median_of_what_is_known(self) -> None:
        climber = Climber(number=9, digest="this", loss=4.0)
        assert Forecast.of([]).final_loss(climber) == 4.0
        assert Forecast.of(climbers(1.0, 2.0, 3.0, final_ratio=0.5)).final_loss(climber) == pytest.approx(2.0)
        assert Forecast.of(climbers(-1.0, 0.0, 3.0, final_ratio=0.5)).final_loss(climber) == pytest.approx(2.0)
        assert Forecast.of(curves(0.1, 0.2)).error(climber) == math.inf


class TestExtrapolation:
    PRUNER = Extrapolation(startup_structures=4, margin=2.0)
    OTHERS = curves(0.1, 0.2, 0.3, 0.4, 0.5, noise=0.02)

    def judge(self, loss: float, rate: float, *others: Climber, replicates: int = 1) -> Verdict | None:
        climber = Climber(number=100, digest="this", loss=loss * 0.25**-rate, earlier_loss=loss * 0.125**-rate)
        return judge(self.PRUNER, climber, [*self.OTHERS, *others], point=0.25, replicates=replicates)

    def test_stops_what_can_hardly_become_the_best(self) -> None:
        found = self.judge(1.3, 0.3)
        assert found is not None
        assert found.expected_loss == pytest.approx(1.3, rel=0.02)
        assert found.reason.startswith("at 0.25 of its compute with a loss of 1.97, expected to end at 1.3")
        assert "hardly below 1.2" in found.reason
        assert found.reason.endswith("where another structure has 0.9802")
        assert self.judge(1.01, 0.3) is None

    def test_lets_a_steep_curve_go_on_that_is_worse_by_now(self) -> None:
        steep, flat = self.judge(1.0, 0.9), self.judge(1.0 * 0.25**-0.8, 0.1)
        assert steep is None
        assert flat is not None

    def test_waits_for_structures_that_have_ended(self) -> None:
        assert (
            judge(
                self.PRUNER,
                Climber(number=100, digest="this", loss=9.0, earlier_loss=9.1),
                [replace(each, final_loss=each.final_loss if each.number < 3 else None) for each in self.OTHERS],
                point=0.25,
                replicates=1,
            )
            is None
        )

    def test_does_not_judge_a_curve_of_one_point(self) -> None:
        climber = Climber(number=100, digest="this", loss=99.0)
        assert judge(self.PRUNER, climber, self.OTHERS, point=0.25, replicates=1) is None

    def test_goes_by_the_mean_of_seeds(self) -> None:
        lucky = Climber(number=99, digest="this", loss=0.5 * 0.25**-0.3, earlier_loss=0.5 * 0.125**-0.3)
        assert self.judge(1.3, 0.3, lucky) is None
        assert self.judge(1.3, 0.3, replicates=2) is None
        assert self.judge(1.3, 0.3, replace(lucky, loss=1.3 * 0.25**-0.3, earlier_loss=1.3 * 0.125**-0.3), replicates=2)

    def test_of_several_objectives_spares_what_may_be_on_the_front(self) -> None:
        others = [replace(each, others=(10.0,)) for each in self.OTHERS]
        for params, stopped in ((9.0, False), (10.0, True), (11.0, True)):
            climber = Climber(
                number=100, digest="this", loss=2 * 0.25**-0.3, earlier_loss=2 * 0.125**-0.3, others=(params,)
            )
            assert bool(judge(self.PRUNER, climber, others, point=0.25, replicates=1)) is stopped


class TestVerdict:
    def test_lets_the_best_part_go_on(self) -> None:
        others = climbers(1.0, 2.0, 3.0)
        assert verdict(HALVING, 1.5, others) is None
        assert verdict(HALVING, 2.5, others) is not None
        assert verdict(SuccessiveHalving(startup_structures=3, reduction=4), 1.5, others) is not None
        assert verdict(SuccessiveHalving(startup_structures=3, reduction=4), 0.5, others) is None

    def test_waits_for_enough_structures(self) -> None:
        assert verdict(HALVING, 9.0, climbers(1.0, 2.0)) is None
        assert verdict(HALVING, 9.0, climbers(1.0, 2.0, seeds=5)) is None

    def test_says_why_and_what_the_loss_would_have_been(self) -> None:
        found = verdict(HALVING, 4.0, climbers(1.0, 2.0, 3.0, final_ratio=0.5))
        assert found == Verdict(
            reason="at 0.25 of its compute with a loss of 4, worse than 3 of 3 other structures", expected_loss=2.0
        )
        unfinished = verdict(HALVING, 4.0, climbers(1.0, 2.0, 3.0))
        assert unfinished is not None
        assert unfinished.expected_loss == 4.0

    def test_of_a_set_of_replicates_is_never_that_of_one_seed(self) -> None:
        others = climbers(1.0, 2.0, 3.0, seeds=2)
        assert verdict(HALVING, 9.0, others, replicates=3) is None
        second = Climber(number=99, digest="this", loss=8.0)
        assert verdict(HALVING, 9.0, [*others, second], replicates=3) is not None

    def test_compares_the_means_of_seeds(self) -> None:
        lucky = Climber(number=99, digest="this", loss=0.1)
        assert verdict(HALVING, 2.7, [*climbers(1.0, 2.0, 3.0), lucky]) is None

    def test_of_hyperband_is_among_those_of_a_bracket(self) -> None:
        # Trial 100 is in bracket 0, of every fourth trial.
        pruner = Hyperband(startup_structures=2)
        others = [Climber(number=number, digest=str(number), loss=1.0) for number in range(1, 60) if number % 4]
        assert verdict(pruner, 2.0, others) is None
        bracket = [Climber(number=number, digest=str(number), loss=1.0) for number in (4, 8)]
        assert verdict(pruner, 2.0, [*others, *bracket]) is not None

    def test_of_several_objectives_spares_what_is_better_in_one(self) -> None:
        others = [replace(each, others=(10.0,)) for each in climbers(1.0, 2.0, 3.0)]
        for params, stopped in ((9.0, False), (10.0, True), (11.0, True)):
            climber = Climber(number=100, digest="this", loss=4.0, others=(params,))
            assert bool(judge(HALVING, climber, others, point=0.25, replicates=1)) is stopped

    def test_is_none_where_nothing_is_pruned(self) -> None:
        assert verdict(NoPruner(), 9.0, climbers(1.0, 2.0, 3.0)) is None
