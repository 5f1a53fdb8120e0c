import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from search.noise import EXPECTED_SD, Noise, Sample

FREEDOMS = (1, 2, 3, 4, 5, 8, 33, 200)
UNIT = [Noise(sd=1.0, freedom=freedom, scale="plain") for freedom in FREEDOMS]
"""On which the difference of two samples of two is in standard errors, of one each."""

means = st.floats(0.01, 100)
samples = st.builds(
    lambda num, mean, spread: Sample(num=num, mean=mean, squares=(num - 1) * (spread * mean) ** 2),
    st.integers(1, 6),
    means,
    st.floats(0, 0.5),
)
noises = st.builds(
    lambda sd, freedom: Noise(sd=sd, freedom=freedom, scale="log"), st.floats(1e-4, 1), st.integers(1, 200)
)


def _two(mean: float) -> Sample:
    return Sample(num=2, mean=mean)


class TestSample:
    @given(losses=st.lists(st.floats(-10, 10), min_size=1, max_size=6))
    def test_is_the_mean_and_the_squares_around_it(self, losses: list[float]) -> None:
        sample = Sample.of(losses)
        assert sample.num == len(losses)
        assert sample.mean == pytest.approx(statistics.fmean(losses), abs=1e-12)
        assert sample.squares == pytest.approx(statistics.pvariance(losses) * len(losses), abs=1e-9)


class TestNoise:
    def test_is_unknown_without_replicates_and_expectations(self) -> None:
        assert Noise.of([]) is None
        assert Noise.of([Sample.of([1.0]), Sample.of([2.0])]) is None

    def test_is_what_is_expected_without_replicates(self) -> None:
        noise = Noise.of([Sample.of([1.0]), Sample.of([2.0])], expected_sd=0.05)
        assert noise is not None
        assert noise.sd == pytest.approx(0.05)
        assert noise.scale == "log"

    def test_begins_at_what_proxies_have_where_there_are_replicates(self) -> None:
        noise = Noise.of([Sample.of([1.0, 1.0])])
        assert noise is not None
        assert 0.8 * EXPECTED_SD < noise.sd < EXPECTED_SD

    @pytest.mark.parametrize("expected_sd", [0.001, 0.03, 0.5])
    def test_is_that_of_the_logs_and_what_is_expected_counts_as_four_trials(self, expected_sd: float) -> None:
        draw = np.random.default_rng(0)
        losses_SR = np.exp(draw.normal(size=(150, 1)) + draw.normal(scale=0.03, size=(150, 4)))
        squares = 450 * float(np.log(losses_SR).var(axis=1, ddof=1).mean())
        noise = Noise.of([Sample.of(losses) for losses in losses_SR.tolist()], expected_sd=expected_sd)
        assert noise is not None
        assert noise.sd == pytest.approx(math.sqrt((squares + 4 * expected_sd**2) / 454), rel=0.01)
        assert (noise.scale, noise.freedom) == ("log", 200)

    def test_is_that_of_the_best_where_the_worse_have_another(self) -> None:
        quiet = [Sample.of([1.0 + i / 1000, 1.0101 + i / 1000]) for i in range(200)]
        loud = [Sample.of([5.0, 9.0])] * 100
        assert Noise.of([*loud, *quiet]) == Noise.of(quiet)

    @pytest.mark.parametrize("mean", [0.0, -1.0])
    def test_is_on_the_plain_scale_where_there_is_no_log(self, mean: float) -> None:
        tried = [Sample.of([mean]), Sample.of([3.0, 5.0]), Sample.of([6.0, 7.0, 8.0])]
        noise = Noise.of(tried, expected_sd=0.01)
        assert noise is not None
        assert (noise.freedom, noise.scale) == (3, "plain")
        assert noise.sd == pytest.approx(math.sqrt(4 / 3))
        assert Noise.of(tried[:1], expected_sd=0.01) is None

    def test_is_unknown_where_losses_are_beyond_measure(self) -> None:
        assert Noise.of([Sample(num=2, mean=1e-300, squares=1e300)]) is None

    @given(found=st.lists(samples, max_size=6), expected_sd=st.none() | st.floats(1e-6, 10))
    def test_is_positive_and_does_not_depend_on_an_order(self, found: list[Sample], expected_sd: float | None) -> None:
        noise, again = (Noise.of(each, expected_sd=expected_sd) for each in (found, found[::-1]))
        assert (noise is None) == (again is None)
        if noise is not None and again is not None:
            assert (noise.sd > 0, noise.freedom) == (True, again.freedom)
            assert noise.sd == pytest.approx(again.sd)


class TestBetter:
    @pytest.mark.parametrize("noise", UNIT, ids=FREEDOMS)
    @pytest.mark.parametrize("t", [-40, -3.1, -1, -0.2, 0, 0.7, 2, 9])
    def test_is_a_students_t_probability(self, noise: Noise, t: float) -> None:
        expected = float(stats.t.cdf(t, noise.freedom))
        assert noise.better(_two(-t), _two(0.0)) == pytest.approx(expected, abs=1e-14)

    def test_is_on_the_scale_of_the_logs(self) -> None:
        noise = Noise(sd=0.1, freedom=7, scale="log")
        one, other = Sample(num=3, mean=2.0), Sample(num=6, mean=2.2)
        expected = stats.t.cdf((math.log(2.2) - math.log(2.0)) / (0.1 * math.sqrt(1 / 3 + 1 / 6)), 7)
        assert noise.better(one, other) == pytest.approx(float(expected), abs=1e-14)

    @given(noise=noises, one=samples, other=samples)
    def test_is_one_or_the_other(self, noise: Noise, one: Sample, other: Sample) -> None:
        assert noise.better(one, other) + noise.better(other, one) == pytest.approx(1, abs=1e-12)

    def test_is_certain_where_there_is_no_noise(self) -> None:
        noise = Noise(sd=0.0, freedom=3, scale="plain")
        found = [noise.better(_two(mean), _two(1.0)) for mean in (0.9, 1.0, 1.1)]
        assert found == [1.0, 0.5, 0.0]

    def test_is_as_frequent_as_it_says(self) -> None:
        # The noise is drawn from what is expected of it, 0.02 with four degrees of freedom, and seen through few trials.
        draw = np.random.default_rng(0)
        said, true = list[float](), list[bool]()
        for _ in range(4000):
            sd = 0.02 * math.sqrt(4 / draw.chisquare(4))
            logs = draw.uniform(-0.15, 0.15, size=4)
            tried = [
                Sample.of(np.exp(log + draw.normal(scale=sd, size=num)).tolist())
                for log, num in zip(logs, draw.integers(1, 4, size=4), strict=True)
            ]
            noise = Noise.of(tried, expected_sd=0.02)
            assert noise is not None
            said.append(noise.better(tried[0], tried[1]))
            true.append(bool(logs[0] < logs[1]))
        _check_calibrated(said, true, at_least=100)


class TestDifference:
    @pytest.mark.parametrize("noise", UNIT, ids=FREEDOMS)
    def test_has_the_interval_of_students_t(self, noise: Noise) -> None:
        found = noise.difference(_two(0.5), _two(0.0))
        low, high = stats.t.interval(0.95, noise.freedom, loc=0.5)
        assert (found.value, found.low, found.high) == pytest.approx((0.5, low, high))

    @given(noise=noises, one=samples, other=samples)
    def test_leaves_out_zero_where_the_probability_says_so(self, noise: Noise, one: Sample, other: Sample) -> None:
        found, probability = noise.difference(one, other), noise.better(one, other)
        if abs(probability - 0.5) < 0.474:
            assert found.low <= 0 <= found.high
        elif abs(probability - 0.5) > 0.476:
            assert not found.low <= 0 <= found.high


class TestConfidence:
    def test_is_whole_where_there_is_nothing_else(self) -> None:
        assert Noise(sd=0.1, freedom=4, scale="log").confidence(_two(1.0), []) == 1.0

    @pytest.mark.parametrize("noise", UNIT[1:], ids=FREEDOMS[1:])
    @pytest.mark.parametrize("t", [-1.5, 0, 0.5, 1, 2, 4])
    def test_of_two_is_that_the_first_is_better(self, noise: Noise, t: float) -> None:
        first, other = _two(0.0), _two(t)
        assert noise.confidence(first, [other]) == pytest.approx(noise.better(first, other), abs=0.006)

    @pytest.mark.parametrize("freedom", [3, 8, 200])
    @pytest.mark.parametrize("seed", range(3))
    def test_is_how_often_the_first_is_best_among_draws_of_the_posterior(self, freedom: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        noise = Noise(sd=0.02, freedom=freedom, scale="log")
        first, *others = sorted(
            (Sample(num=int(draw.integers(1, 4)), mean=float(draw.uniform(1, 1.06))) for _ in range(9)),
            key=lambda sample: sample.mean,
        )
        sds = 0.02 * np.sqrt(freedom / draw.chisquare(freedom, size=100_000))
        logs = [
            math.log(each.mean) + sds / math.sqrt(each.num) * draw.normal(size=len(sds)) for each in (first, *others)
        ]
        expected = float((logs[0] < np.min(logs[1:], axis=0)).mean())
        assert noise.confidence(first, others) == pytest.approx(expected, abs=0.01)

    def test_is_lowered_by_what_may_lie_beyond(self) -> None:
        noise = Noise(sd=0.02, freedom=30, scale="log")
        first, others = _two(1.0), [Sample(num=1, mean=1.05)]
        alone = noise.confidence(first, others)
        each = noise.better(others[0], first)
        assert noise.confidence(first, others, num_more=3) == pytest.approx(alone - 3 * each)
        assert noise.confidence(first, others, num_more=10**6) == 0.0
        assert noise.confidence(first, [*others, *others]) >= noise.confidence(first, others, num_more=1)

    def test_is_none_for_one_that_is_beaten_without_noise(self) -> None:
        noise = Noise(sd=0.0, freedom=3, scale="plain")
        assert noise.confidence(_two(1.0), [_two(2.0), _two(0.9)]) == 0.0
        assert noise.confidence(_two(1.0), [_two(2.0), _two(3.0)]) == 1.0


def _check_calibrated(said: Sequence[float], true: Sequence[bool], *, at_least: int) -> None:
    """In every fifth of the probabilities, things happen as often as was said, within four standard errors."""
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = [
            (p, happened) for p, happened in zip(said, true, strict=True) if low <= p < low + 0.2 or p == low + 0.2
        ]
        assert len(inside) >= at_least
        expected = statistics.fmean(p for p, _ in inside)
        error = math.sqrt(expected * (1 - expected) / len(inside))
        assert statistics.fmean(happened for _, happened in inside) == pytest.approx(expected, abs=4 * error)
