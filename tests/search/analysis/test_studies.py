"""What studies find of worlds whose truth is known."""

import math
from dataclasses import replace

import pytest

from einlayers.errors import FieldError
from einlayers.theta import NAMED, Theta
from search.analysis import baseline, calibration, fidelity, scaling, transfer
from search.proxies.regression import Regression
from search.proxies.shapes import ModelCost
from search.studies.baseline import Baseline, DenseFrontier
from search.studies.calibration import Calibration
from search.studies.fidelity import FidelityStudy
from search.studies.scaling import ScalingStudy
from search.studies.structures import REFERENCE_SET
from search.studies.transfer import TransferCheck
from search.trial import Coordinates
from tests.search.studies.synthetic import (
    COMPUTE_EXPONENT,
    DATA_EXPONENT,
    IRREDUCIBLE,
    PARAMS_EXPONENT,
    World,
    sized,
    worth,
)

PROXY = Regression(train_flops=1e11, base_lr=5e-3)


def tuned(theta: Theta, cost: ModelCost, compute: float, lr_mult: float) -> float:
    """Kronecker wants four times the rate that it is given, the others have theirs."""
    off = math.log2(lr_mult) - (2 if theta == NAMED["kronecker"] else 0)
    return sized(theta, cost, compute, 1.0) * (1 + 0.1 * off**2)


class TestFidelity:
    STUDY = FidelityStudy(name="x", proxy=PROXY, replicates=4)

    def test_of_a_quiet_world_is_perfect(self) -> None:
        found = fidelity.analyse(self.STUDY, World(sized).measure(self.STUDY))
        assert found.between_seeds.spearman.value == pytest.approx(1)
        assert found.against_reference.spearman.value > 0.9
        assert found.truthful
        assert found.top_overlap == 4
        assert found.sd == pytest.approx(0, abs=1e-9)
        assert found.cpu_seconds == pytest.approx(sum(PROXY.width_for(theta) for theta in REFERENCE_SET) / 160)

    def test_of_noise_alone_is_none(self) -> None:
        noise = World(lambda *_: 1.0, run_sd=0.1)
        found = fidelity.analyse(self.STUDY, noise.measure(self.STUDY))
        assert abs(found.between_seeds.spearman.value) < 0.5
        assert found.sd == pytest.approx(0.1, rel=0.3)
        assert not found.truthful

    def test_grows_with_replicates(self) -> None:
        study = replace(self.STUDY, replicates=6)
        found = fidelity.analyse(study, World(sized, run_sd=0.05).measure(study))
        assert list(found.between_means) == [1, 2, 3]
        assert found.between_means[1] < found.between_means[2] < found.between_means[3]

    def test_rejects_one_width_for_all_however_well_seeds_agree(self) -> None:
        study = FidelityStudy(name="x", proxy=replace(PROXY, width=64), neighbours=False)
        found = fidelity.analyse(study, World(sized, run_sd=0.005).measure(study))
        assert found.between_seeds.spearman.value > 0.9
        assert found.against_reference.spearman.value < 0.5
        assert not found.truthful

    def test_rejects_unequal_compute_whatever_the_order(self) -> None:
        study = FidelityStudy(name="x", proxy=replace(PROXY, width=64), neighbours=False, scoring="equal_steps")
        found = fidelity.analyse(study, World(lambda theta, *_: 1 / worth(theta)).measure(study))
        assert found.against_reference.spearman.value == pytest.approx(1)
        assert found.compute_spread > 2
        assert not found.truthful

    def test_compares_with_the_best_width_of_the_reference(self) -> None:
        study = replace(self.STUDY, reference_neighbours=True)
        measured = dict(World(sized).measure(study))
        best = 1e-3
        measured["reference_neighbours"] = [
            replace(run, loss=best if place == 3 else math.inf)
            for place, run in enumerate(measured["reference_neighbours"])
        ]
        found = fidelity.analyse(study, measured)
        without = fidelity.analyse(self.STUDY, World(sized).measure(self.STUDY))
        losses = [each.reference_loss for each in without.structures]
        assert [each.reference_loss for each in found.structures] == [losses[0], best, *losses[2:]]

    def test_knows_which_width_is_the_best_one(self) -> None:
        study = replace(self.STUDY, proxy=replace(PROXY, dense_width=96))
        found = fidelity.analyse(study, World(sized).measure(study))
        assert {each.bracketed for each in found.structures} == {False}
        well_sized = replace(self.STUDY, proxy=replace(PROXY, dense_width=24))
        found = fidelity.analyse(well_sized, World(sized).measure(well_sized))
        assert [each.bracketed for each in found.structures].count(True) >= 5

    def test_ranks_what_cannot_be_trained_last(self) -> None:
        def fragile(theta: Theta, cost: ModelCost, compute: float, lr_mult: float) -> float:
            return math.inf if theta == REFERENCE_SET[3] else sized(theta, cost, compute, lr_mult)

        found = fidelity.analyse(self.STUDY, World(fragile).measure(self.STUDY))
        assert [each.theta for each in found.structures if each.loss is None] == [REFERENCE_SET[3]]
        assert found.between_seeds.spearman.value == pytest.approx(1)

    def test_of_what_cannot_be_trained_at_all_is_none(self) -> None:
        found = fidelity.analyse(self.STUDY, World(lambda *_: math.inf).measure(self.STUDY))
        assert {each.loss for each in found.structures} == {None}
        assert (found.sd, found.truthful) == (0.0, False)


class TestCalibration:
    STUDY = Calibration(name="x", proxy=PROXY)

    @pytest.mark.parametrize("best", [5e-3, 3.6e-3, 2e-3, 6.6e-3])
    def test_finds_the_best_rate_also_between_those_that_were_tried(self, best: float) -> None:
        world = World(lambda theta, cost, compute, rate: math.exp(0.1 * math.log(rate / best) ** 2))
        found = calibration.analyse(self.STUDY, world.measure(self.STUDY))
        assert found.base_lr == pytest.approx(best)
        assert (found.bracketed, found.warmup_steps) == (True, 50)
        assert [len(point.losses) for point in found.sweep] == [2] * 7

    def test_finds_about_the_best_rate_in_noise(self) -> None:
        world = World(lambda theta, cost, compute, rate: math.exp(0.1 * math.log(rate / 3.6e-3) ** 2), run_sd=0.01)
        found = [calibration.analyse(self.STUDY, world.measure(self.STUDY, seed)).base_lr for seed in range(20)]
        assert all(2.4e-3 < rate < 5.4e-3 for rate in found)

    def test_says_when_the_best_rate_is_the_last_that_was_tried(self) -> None:
        lowest = min(self.STUDY.rates)
        world = World(lambda theta, cost, compute, rate: 1 + math.log(rate / lowest) ** 2)
        found = calibration.analyse(self.STUDY, world.measure(self.STUDY))
        assert (found.base_lr, found.bracketed) == (lowest, False)

    def test_does_not_choose_a_rate_that_diverged_once(self) -> None:
        *_, stable, fast, faster = self.STUDY.rates
        world = World(lambda theta, cost, compute, rate: 1 / rate if rate < fast else math.inf)
        found = calibration.analyse(self.STUDY, world.measure(self.STUDY))
        assert found.base_lr == stable
        assert [point.base_lr for point in found.sweep if point.loss is None] == [fast, faster]

    def test_says_when_nothing_trains(self) -> None:
        world = World(lambda *_: math.inf)
        with pytest.raises(FieldError, match="learning_rates: expected one at which the dense model can be trained"):
            calibration.analyse(self.STUDY, world.measure(self.STUDY))


class TestBaseline:
    STUDY = Baseline(name="x", proxy=PROXY, replicates=4)

    def frontier(self, world: World, seed: int = 0) -> DenseFrontier:
        return baseline.analyse(self.STUDY, world.measure(self.STUDY, seed))

    def test_has_the_best_width_at_each_compute(self) -> None:
        points = self.frontier(World(sized)).points
        assert [point.train_flops for point in points] == pytest.approx(
            [2e11 * 2 ** (-k / 2) for k in range(8, -1, -1)]
        )
        assert [point.width for point in points] == sorted(point.width for point in points)
        assert len({point.width for point in points}) >= 3

    def test_gives_dense_a_multiplier_of_one(self) -> None:
        frontier = self.frontier(World(sized))
        for point in frontier.points:
            found = frontier.multiplier(point.losses, point.train_flops)
            assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
            assert not found.extrapolated

    def test_covers_one_for_dense_in_nearly_all_draws(self) -> None:
        noisy = World(sized, run_sd=0.015, point_sd=0.003)
        covered = 0
        for seed in range(100):
            frontier = self.frontier(noisy, seed)
            other = self.frontier(noisy, 1000 + seed).points[4]
            found = frontier.multiplier(other.losses, other.train_flops)
            covered += found.low <= 1 <= found.high
        assert covered >= 90

    @pytest.mark.parametrize("factor", [0.25, 0.5, 1.5])
    def test_knows_what_a_loss_costs_dense(self, factor: float) -> None:
        frontier = self.frontier(World(sized))
        loss = min(
            sized(NAMED["dense"], PROXY.cost(NAMED["dense"], width), factor * 1e11, 1.0) for width in range(8, 64)
        )
        assert frontier.multiplier([loss], 1e11).value == pytest.approx(factor, rel=0.05)

    def test_says_when_it_goes_beyond_what_was_trained(self) -> None:
        frontier = self.frontier(World(sized))
        first, last = frontier.points[0], frontier.points[-1]
        assert frontier.multiplier([1.2 * first.losses[0]], 1e11).extrapolated
        below = frontier.multiplier([0.9 * last.losses[0]], 1e11)
        assert below.extrapolated
        assert below.value > last.train_flops / 1e11
        assert math.isfinite(frontier.multiplier([1e-9], 1e11).high)

    @pytest.mark.parametrize("losses", [[], [0.0], [math.inf], [math.nan], [1.0, -1.0]])
    def test_refuses_what_is_no_loss(self, losses: list[float]) -> None:
        with pytest.raises(FieldError, match="losses: expected positive numbers"):
            self.frontier(World(sized)).multiplier(losses, 1e11)


class TestScaling:
    STUDY = ScalingStudy(
        name="x", proxy=replace(PROXY, dense_width=24), structures=(NAMED["monarch"], NAMED["low-rank"]), replicates=4
    )

    @pytest.fixture(autouse=True)
    def few_draws(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scaling, "NUM_DRAWS", 24)

    def test_finds_the_constants_of_a_quiet_world(self) -> None:
        found = scaling.analyse(self.STUDY, World(sized).measure(self.STUDY))
        assert [each.theta for each in found.structures] == list(self.STUDY.thetas)
        for each in found.structures:
            assert each.size_law is not None
            assert each.size_law.law.params_exponent == pytest.approx(PARAMS_EXPONENT, rel=0.01)
            assert each.size_law.law.data_exponent == pytest.approx(DATA_EXPONENT, rel=0.01)
            assert each.size_law.law.irreducible == pytest.approx(IRREDUCIBLE, rel=0.05)
            assert each.power_law.law.exponent == pytest.approx(COMPUTE_EXPONENT, rel=0.1)
            assert each.multipliers[-1].value == pytest.approx(worth(each.theta), rel=0.15)
            assert each.bracketed

    def test_is_right_about_how_sure_it_is(self) -> None:
        # Few draws, because each takes a second.
        noisy, hits, asked = World(sized, run_sd=0.015, point_sd=0.003), 0, 0
        study = replace(self.STUDY, structures=(NAMED["monarch"],))
        for seed in range(6):
            found = scaling.analyse(study, noisy.measure(study, seed)).structures[1]
            assert found.size_law is not None
            for estimate, truth in (
                (found.size_law.params_exponent, PARAMS_EXPONENT),
                (found.size_law.data_exponent, DATA_EXPONENT),
                (found.size_law.irreducible, IRREDUCIBLE),
            ):
                hits += estimate.low <= truth <= estimate.high
                asked += 1
            hits += found.multipliers[-1].low <= worth(NAMED["monarch"]) <= found.multipliers[-1].high
            asked += 1
        assert hits >= 0.75 * asked

    def test_takes_the_best_rate_of_each_structure(self) -> None:
        study = replace(
            self.STUDY, structures=(NAMED["kronecker"],), lr_mults=(0.5, 1.0, 2.0, 4.0, 8.0), compute_factors=(1.0,)
        )
        found = scaling.analyse(study, World(tuned).measure(study))
        assert found.lr_tuned
        assert [each.frontier[-1].lr_mult for each in found.structures] == [1.0, 4.0]
        assert all(each.bracketed for each in found.structures)
        at_the_edge = replace(study, lr_mults=(0.5, 1.0, 2.0))
        found = scaling.analyse(at_the_edge, World(tuned).measure(at_the_edge))
        assert [each.bracketed for each in found.structures] == [True, False]


class TestTransfer:
    STUDY = TransferCheck(name="x", proxy=PROXY, structures=(NAMED["dense"], NAMED["kronecker"]))

    def test_flags_a_structure_whose_best_rate_is_elsewhere(self) -> None:
        found = transfer.analyse(self.STUDY, World(tuned).measure(self.STUDY))
        assert [each.transfers for each in found.structures] == [True, False]
        dense, kronecker = found.structures
        assert [sweep.best_lr_mult for sweep in dense.sweeps] == [1.0, 1.0]
        assert [sweep.best_lr_mult for sweep in kronecker.sweeps] == [4.0, 4.0]
        assert kronecker.sweeps[0].regret == pytest.approx(math.log(1.4))

    def test_flags_a_structure_whose_features_move_with_the_width(self) -> None:
        measured = World(sized).measure(self.STUDY)
        moving = [
            replace(run, coordinates={"up": Coordinates(features=1.0, updates=run.width**2.0)})
            for run in measured["sweep"]
        ]
        found = transfer.analyse(self.STUDY, {"sweep": moving})
        assert [each.transfers for each in found.structures] == [False, False]
        spread = found.structures[0].coordinates["up"]
        assert spread.features == 1.0
        assert spread.updates == pytest.approx(4, rel=0.1)

    def test_bears_with_a_rate_that_costs_next_to_nothing(self) -> None:
        flat = World(lambda theta, cost, compute, mult: 1 - 0.001 * mult)
        found = transfer.analyse(self.STUDY, flat.measure(self.STUDY))
        assert all(each.transfers for each in found.structures)

    def test_flags_what_diverges_at_the_transferred_rate(self) -> None:
        world = World(lambda theta, cost, compute, mult: 1.0 if mult < 1 else math.inf)
        found = transfer.analyse(self.STUDY, world.measure(self.STUDY))
        assert [each.sweeps[0].regret for each in found.structures] == [None, None]
