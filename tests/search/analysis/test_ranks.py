"""Rank correlations against their definitions by plain loops, and what a bootstrap over structures must and must not say."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from einlayers.errors import FieldError
from search.analysis.ranks import agreement, correlation, kendall, spearman, top_overlap

LISTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=8)


def matrix(
    num_structures: int, num_replicates: int, noise: float, seed: int = 0
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Losses of structures a unit apart, with noise of their own."""
    draw = np.random.default_rng(seed)
    truth = np.arange(num_structures, dtype=np.float64)
    return truth[:, None] + noise * draw.standard_normal((num_structures, num_replicates))


class TestSpearman:
    @given(pairs=LISTS)
    def test_is_the_correlation_of_mean_ranks(self, pairs: list[tuple[int, int]]) -> None:
        first, second = (np.array(values, dtype=np.float64) for values in zip(*pairs, strict=True))

        def ranks(values: list[float]) -> list[float]:
            return [sum(v < value for v in values) + (values.count(value) + 1) / 2 for value in values]

        a, b = ranks(first.tolist()), ranks(second.tolist())
        mean = (len(a) + 1) / 2
        covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
        scale = (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5
        assert spearman(first, second) == pytest.approx(covariance / scale if scale else 0.0)

    def test_refuses_lists_that_cannot_be_compared(self) -> None:
        for first, second in (([1.0], [1.0]), ([1.0, 2.0], [1.0])):
            with pytest.raises(FieldError, match=r"^losses: expected two lists"):
                spearman(np.array(first), np.array(second))


class TestKendall:
    @given(pairs=LISTS)
    def test_is_the_share_of_pairs_in_order_less_those_that_are_not(self, pairs: list[tuple[int, int]]) -> None:
        both = list(combinations(pairs, 2))
        signs = [(np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in both]
        scale = (sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)) ** 0.5
        expected = sum(x * y for x, y in signs) / scale if scale else 0.0
        first, second = (np.array(values, dtype=np.float64) for values in zip(*pairs, strict=True))
        assert kendall(first, second) == pytest.approx(float(expected))


class TestAgreement:
    def test_is_whole_where_replicates_order_alike(self) -> None:
        found = agreement(matrix(8, 3, noise=0.01))
        assert (found.spearman.value, found.lowest_spearman, found.kendall.value) == pytest.approx((1, 1, 1))
        assert (found.spearman.low, found.spearman.high) == pytest.approx((1, 1))
        assert (found.num_structures, found.num_replicates) == (8, 3)

    def test_is_about_nothing_where_they_do_not(self) -> None:
        found = agreement(np.random.default_rng(1).standard_normal((12, 6)))
        assert abs(found.spearman.value) < 0.25
        assert found.spearman.low < 0 < found.spearman.high
        assert found.lowest_spearman < found.spearman.value

    def test_is_the_mean_over_pairs_of_replicates(self) -> None:
        losses = matrix(8, 4, noise=2.0)
        pairs = [spearman(a, b) for a, b in combinations(losses.T, 2)]
        found = agreement(losses)
        assert found.spearman.value == pytest.approx(np.mean(pairs))
        assert found.lowest_spearman == pytest.approx(min(pairs))
        assert found.spearman.low < found.spearman.value < found.spearman.high

    @pytest.mark.parametrize("shape", [(2, 5), (5, 1)])
    def test_needs_some_of_both(self, shape: tuple[int, int]) -> None:
        with pytest.raises(FieldError, match=r"^losses: expected at least 3 structures and 2 replicates"):
            agreement(np.zeros(shape))


class TestCorrelation:
    def test_compares_two_rankings(self) -> None:
        first = np.arange(10, dtype=np.float64)
        assert correlation(first, first**3).spearman.value == pytest.approx(1)
        assert correlation(first, -first).spearman.value == pytest.approx(-1)

    def test_covers_the_truth_about_as_often_as_it_says(self) -> None:
        """Of many structures, the interval of a few dozen holds what all of them say."""
        population = matrix(400, 2, noise=100.0)
        truth = spearman(population[:, 0], population[:, 1])
        draw = np.random.default_rng(0)
        held = []
        for _ in range(40):
            some = population[draw.choice(400, 30, replace=False)]
            found = correlation(some[:, 0], some[:, 1]).spearman
            held.append(found.low <= truth <= found.high)
        assert np.mean(held) > 0.85


class TestTopOverlap:
    def test_counts_what_is_best_for_all(self) -> None:
        losses = np.array([[1.0, 2, 9, 3], [1, 9, 2, 3], [1, 2, 3, 9]]).T
        assert top_overlap(losses, 3) == 1
        assert top_overlap(losses[:, :1], 3) == 3
