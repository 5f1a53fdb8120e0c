"""The comparison of samplers: what they are compared on, and how regret is counted."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search import record
from benchmarks.search.contestants import CONTESTANTS, DEFAULT, GRID, PROXY, RACING, RANDOM
from benchmarks.search.objectives import (
    LANDSCAPES,
    SHARES,
    Curve,
    Interpolated,
    Landscape,
    Objective,
    Row,
    Table,
    read_rows,
    read_table,
    write_rows,
)
from benchmarks.search.regret import mean, speedup
from benchmarks.search.report import report
from benchmarks.search.searches import PRUNERS, Searched, searched
from einlayers.theta import NAMED, Theta
from search.designs import PAPERS_GRID
from search.proposals import PastTrial
from search.stopping import Extrapolation, NoPruner, PrunerSpec, SuccessiveHalving
from search.structure import structure_of
from search.studies.structures import RandomStructures


def log_loss(objective: Objective, theta: Theta, seed: int, replicate: int) -> float:
    """At the end of a training."""
    return math.log(objective.curve(theta, seed, replicate)[-1])


QUIET = Landscape(name="quiet", target=NAMED["monarch"])


def curve(loss: float) -> Curve:
    """Of a run whose loss falls the same way whatever it is, to the exponential of this."""
    return tuple(math.exp(loss) * share**-0.2 for share in SHARES)


TABLE = Table(
    {
        NAMED["monarch"]: [curve(1.0), curve(3.0)],
        NAMED["btt"]: [curve(1.5), curve(1.7)],
        NAMED["low-rank"]: [curve(4.0), curve(4.0)],
    }
)


def distinct(count: int) -> Sequence[Theta]:
    """So many structures that are different models."""
    models = {structure_of(theta, PROXY).digest: theta for theta in RandomStructures(count=2 * count, seed=4)}
    return list(models.values())[:count]


class InOrder:
    """Proposes what it is given."""

    def __init__(self, thetas: Sequence[Theta], seeds_wanted: int = 1) -> None:
        self.thetas = thetas
        self.seeds_wanted = seeds_wanted

    def ask(self, history: Sequence[PastTrial]) -> Theta | None:
        return self.thetas[len(history)] if len(history) < len(self.thetas) else None


class TestLandscape:
    @pytest.mark.parametrize("landscape", LANDSCAPES, ids=lambda each: each.name)
    def test_is_lowest_at_its_target_and_the_swap_of_it(self, landscape: Landscape) -> None:
        assert landscape.truth(landscape.target) == landscape.truth(landscape.target.swapped()) == landscape.lowest
        assert all(landscape.truth(theta) > 0.01 for theta in RandomStructures(count=50, seed=3))

    def test_is_measured_with_its_noise(self) -> None:
        theta, noisy = NAMED["monarch"], Landscape(name="noisy", target=NAMED["btt"], noise_sd=0.1)
        numbers = [(seed, replicate) for seed in range(100) for replicate in range(4)]
        errors = [log_loss(noisy, theta, *each) - noisy.truth(theta) for each in numbers]
        assert np.std(errors) == pytest.approx(0.1, rel=0.15)
        assert noisy.curve(theta.swapped(), 7, 2) == pytest.approx(noisy.curve(theta, 7, 2))
        assert log_loss(QUIET, NAMED["btt"], 0, 0) == pytest.approx(QUIET.truth(NAMED["btt"]))


class TestTable:
    def test_gives_the_nearest_structure_that_was_not_tried(self) -> None:
        near_monarch = Theta.parse("(0.51|0|0.49|0|0.5|0.5|0)")
        assert TABLE.place(near_monarch, set()) == NAMED["monarch"]
        assert TABLE.place(near_monarch, {NAMED["monarch"]}) == NAMED["btt"]

    def test_measures_one_seed_and_knows_the_mean(self) -> None:
        measured = {tuple(round(log_loss(TABLE, NAMED["monarch"], seed, k), 9) for k in range(3)) for seed in range(20)}
        assert measured == {(1.0, 3.0, 1.0), (3.0, 1.0, 3.0)}
        assert TABLE.truth(NAMED["monarch"]) == pytest.approx(2.0)
        assert TABLE.lowest == pytest.approx(1.6)

    def test_is_kept_exactly(self, tmp_path: Path) -> None:
        thetas = [NAMED["btt"], *RandomStructures(count=3, seed=0)]
        rows = [
            Row(theta=theta, width=24, seed=seed, losses=(0.5, 0.25, 0.25, 0.25, 0.125))
            for theta in thetas
            for seed in (1, 2)
        ]
        write_rows(rows, tmp_path / "rows")
        assert list(read_rows(tmp_path / "rows")) == rows
        again = tmp_path / "again"
        write_rows(rows, again)
        assert again.read_bytes() == (tmp_path / "rows").read_bytes()
        assert read_table(again).curves == {theta: [rows[0].losses] * 2 for theta in thetas}

    def test_that_is_recorded_has_every_model_once(self) -> None:
        table = read_table()
        digests = {structure_of(theta, PROXY).digest for theta in table.curves}
        assert len(digests) == len(table.curves) > 400
        assert digests == {structure_of(theta, PROXY).digest for theta in record.structures()}
        assert {len(curves) for curves in table.curves.values()} == {record.NUM_REPLICATES}
        assert {len(curve) for curves in table.curves.values() for curve in curves} == {len(SHARES)}
        dense = structure_of(NAMED["dense"], PROXY).digest
        designs = {structure_of(theta, PROXY).digest for theta in (*NAMED.values(), *PAPERS_GRID)}
        assert designs - digests == {dense}


class TestInterpolated:
    RECORDED = Interpolated(read_table())

    def test_knows_the_structures_of_its_table(self) -> None:
        table = self.RECORDED.table
        for theta in list(table.curves)[::40]:
            found = self.RECORDED.truth(theta), self.RECORDED.truth(theta.swapped())
            assert found == pytest.approx([table.truth(theta)] * 2)
            seen = np.array([self.RECORDED.curve(theta, 5, replicate) for replicate in range(3)])
            assert sorted(seen[:, -1]) == pytest.approx(sorted(curve[-1] for curve in table.curves[theta]))
            assert seen.sum(axis=0) == pytest.approx(np.sum(table.curves[theta], axis=0))

    def test_expects_of_others_no_less_than_the_lowest_and_the_noise_of_the_most_similar(self) -> None:
        table = self.RECORDED.table
        for theta in RandomStructures(count=10, seed=99):
            assert self.RECORDED.place(theta, set()) == theta
            assert self.RECORDED.truth(theta) > self.RECORDED.lowest == min(map(table.truth, table.curves))
            similar = table.place(theta, set())
            errors = [
                log_loss(self.RECORDED, theta, 1, replicate) - self.RECORDED.truth(theta) for replicate in range(3)
            ]
            noise = [math.log(curve[-1]) - table.truth(similar) for curve in table.curves[similar]]
            assert sorted(errors) == pytest.approx(sorted(noise))
            first = self.RECORDED.curve(theta, 1, 0)
            assert first == self.RECORDED.curve(theta, 1, 0)
            assert len(first) == len(SHARES)

    def test_tells_what_it_has_not_learnt(self) -> None:
        assert self.RECORDED.agreement() > 0.9
        losses = np.random.default_rng(0).permutation(30) / 10
        chance = Interpolated(Table({theta: [curve(loss)] for theta, loss in zip(distinct(30), losses, strict=True)}))
        assert chance.agreement() < 0.6


class TestRegret:
    def test_is_that_of_what_looked_best_and_not_of_what_was(self) -> None:
        class Lucky(Table):
            def curve(self, theta: Theta, seed: int, replicate: int) -> Curve:
                return min(self.curves[theta], key=lambda curve: curve[-1])

        objective = Lucky(TABLE.curves)
        found = searched(InOrder([NAMED["low-rank"], NAMED["btt"], NAMED["monarch"]]), objective, 0, 3)
        assert found.best == NAMED["monarch"]
        assert found.regrets == pytest.approx([2.4, 0.0, 0.4])

    def test_is_that_of_the_best_mean_among_those_with_the_seeds_that_are_wanted(self) -> None:
        twice = InOrder(
            [NAMED["btt"], NAMED["low-rank"], NAMED["monarch"], NAMED["btt"], NAMED["monarch"]], seeds_wanted=2
        )
        regrets = searched(twice, TABLE, 0, 5).regrets
        # Monarch looks best or worst by its first seed; it is worse than btt by the mean of both.
        assert regrets[:2] == pytest.approx([0.0, 0.0])
        assert regrets[3:] == pytest.approx([0.0, 0.0])
        once = InOrder([NAMED["btt"], NAMED["btt"]])
        assert searched(once, TABLE, 0, 2).regrets == pytest.approx(
            [0.0, 0.0 if log_loss(TABLE, NAMED["monarch"], 0, 0) > 2 else 0.4]
        )

    def test_stays_where_nothing_more_is_proposed(self) -> None:
        found = searched(InOrder([NAMED["monarch"]]), QUIET, 0, 4)
        assert (found.regrets, found.compute) == ((0.0,) * 4, 1)

    @pytest.mark.parametrize("name", CONTESTANTS)
    def test_follows_from_the_seed_and_never_grows_without_noise(self, name: str) -> None:
        first, again = (searched(CONTESTANTS[name](3, 12), QUIET, 3, 12).regrets for _ in range(2))
        assert first == again == tuple(sorted(first, reverse=True))
        assert len(first) == 12

    def test_is_a_mean_with_an_interval(self) -> None:
        regrets_ST = np.array([[4.0, 1.0], [4.0, 3.0]])
        found = mean(regrets_ST, 2)
        assert (found.low, found.value, found.high) == (1.0, 2.0, 3.0)

    def test_compares_the_trials_that_are_needed(self) -> None:
        slow_ST, fast_ST = np.tile([5.0, 4.0, 3.0, 2.0], (3, 1)), np.tile([5.0, 2.0, 1.0, 1.0], (3, 1))
        assert (speedup(fast_ST, slow_ST).low, speedup(fast_ST, slow_ST).value) == (2.0, 2.0)
        assert speedup(slow_ST, slow_ST).value == 1.0
        assert speedup(slow_ST, fast_ST).value == pytest.approx(3 / 5)


class TestStopping:
    TABLE = Table({theta: [curve(number / 10)] for number, theta in enumerate(distinct(30))})

    def search(self, pruner: PrunerSpec, thetas: Sequence[Theta]) -> Searched:
        return searched(InOrder(thetas), self.TABLE, 0, 30, pruner)

    def test_of_nothing_takes_all_compute(self) -> None:
        found = self.search(NoPruner(), list(self.TABLE.curves)[::-1])
        assert (found.compute, found.regrets[-1], found.best) == (30, 0, next(iter(self.TABLE.curves)))

    @pytest.mark.parametrize("pruner", PRUNERS.values(), ids=PRUNERS)
    def test_stops_nobody_who_is_better_than_all_before(self, pruner: PrunerSpec) -> None:
        thetas = list(self.TABLE.curves)[::-1]
        assert self.search(pruner, thetas) == self.search(NoPruner(), thetas)

    @pytest.mark.parametrize(("pruner", "first"), [(SuccessiveHalving(), 1 / 8), (Extrapolation(), 1 / 4)])
    def test_stops_those_who_are_worse_at_the_first_rung(self, pruner: PrunerSpec, first: float) -> None:
        found = self.search(pruner, list(self.TABLE.curves))
        assert found.compute == 8 + 22 * first
        assert found.regrets[-1] == 0

    def test_gives_up_no_contender_of_a_race_for_its_other_seeds(self) -> None:
        table = Table({theta: [curve(number / 10)] * 3 for number, theta in enumerate(self.TABLE.curves)})
        found = searched(CONTESTANTS[RACING](0, 30), table, 0, 30, Extrapolation())
        assert found.compute < 20
        assert found.regrets[-1] == 0


def test_reports_every_objective_and_contestant() -> None:
    table = Table({theta: [curve(number / 10)] * 2 for number, theta in enumerate(distinct(12))})
    regrets = {name: np.full((2, 8), 0.5) for name in (RANDOM, GRID, DEFAULT)}
    stopped = {
        ("gp", name): [Searched(compute=compute, regrets=(regret,), best=NAMED[best])]
        for name, compute, regret, best in (("none", 8, 0.0, "btt"), ("median", 2, 0.1, "monarch"))
    }
    text = report({"a landscape": regrets}, recorded=Interpolated(table), stopped=stopped, asks={"`tpe`, 100": 0.004})
    assert "## A landscape" in text
    assert "| random | 0.5000 [0.5000, 0.5000] | 0.5000 [0.5000, 0.5000] | 0.5000 [0.5000, 0.5000] | 1 |" in text
    assert f"| **{DEFAULT}** (default) |" in text
    assert "| `tpe`, 100 | 4 |" in text
    regret = "0.1000 [0.1000, 0.1000] | +0.1000 [+0.1000, +0.1000]"
    assert f"| gp | `median` | 0.25 [0.25, 0.25] | {regret} | 0 of 1 | 0 of 1 |" in text
    assert "as 12 structures tell it" in text
    without = report({"a landscape": regrets}, recorded=None, stopped={}, asks={})
    assert "recorded" not in without
