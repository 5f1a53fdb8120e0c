"""Which trials are stopped early, on paper."""

from dataclasses import replace

import pytest

from search.pruning import Climber, Verdict, is_rung, judge, point_of
from search.stopping import Hyperband, MedianRule, NoPruner, PrunerSpec, SuccessiveHalving

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
            (NoPruner(), []),
        ],
    )
    def test_are_shares_of_the_compute(self, pruner: PrunerSpec, rungs: list[float]) -> None:
        assert [point for point in POINTS if is_rung(pruner, 0, point)] == pytest.approx(rungs)

    def test_of_hyperband_begin_later_in_every_bracket_and_never_in_the_last(self) -> None:
        first = [[point for point in POINTS if is_rung(Hyperband(), number, point)] for number in range(5)]
        assert first == [[1 / 8, 1 / 4, 1 / 2], [1 / 4, 1 / 2], [1 / 2], [], [1 / 8, 1 / 4, 1 / 2]]


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
