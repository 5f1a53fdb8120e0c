"""muP, measured: features and how far they move depend neither on the width nor on the depth, structured or dense."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks.mup import (
    EVEN_WIDTHS,
    FLAT,
    FLAT_STRUCTURES,
    MIXED_WIDTHS,
    NARROWING_STRUCTURES,
    PRIME_WIDTHS,
    PROPOSED_LR,
    SHARED_STRUCTURES,
    SMALL_STRUCTURES,
    STRUCTURES,
    WIDTHS,
    check_depths,
    check_widths,
)
from einlayers.coordinates import Coordinates, coordinate_check, spread
from einlayers.errors import FieldError
from einlayers.linear import EinsumLinear

FEW_SEEDS, SEEDS, MANY_SEEDS = range(4), range(6), range(16)

SPECTRAL_TOLERANCE = 0.1
"""Between the rms of the outputs of 6 small random layers and its expectation."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """So that the sums of floats, and with them every figure here, do not depend on the number of cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def feature_spread(found: dict[str, Coordinates]) -> float:
    """Of the module whose features depend most on the size."""
    return max(coordinates.feature_spread for coordinates in found.values())


def update_spread(found: dict[str, Coordinates]) -> float:
    """Of the module whose updates depend most on the size."""
    return max(coordinates.update_spread for coordinates in found.values())


class TestWidth:
    @pytest.mark.parametrize("name", FLAT_STRUCTURES)
    def test_changes_neither_features_nor_their_updates(self, name: str) -> None:
        found = check_widths(STRUCTURES[name], seeds=SEEDS)
        assert feature_spread(found) <= FLAT
        assert update_spread(found) <= FLAT

    @pytest.mark.parametrize("name", ["BTT rank 1", "low rank d/4"])
    def test_changes_nothing_in_layers_that_are_not_square(self, name: str) -> None:
        found = check_widths(STRUCTURES[name], expansion=4, seeds=FEW_SEEDS)
        assert feature_spread(found) <= FLAT
        assert update_spread(found) <= FLAT

    @pytest.mark.parametrize("name", ["BTT rank 1", "BTT of 3 cores"])
    def test_changes_nothing_that_is_no_power_of_two(self, name: str) -> None:
        found = check_widths(STRUCTURES[name], widths=MIXED_WIDTHS, seeds=SEEDS)
        assert feature_spread(found) <= FLAT
        assert update_spread(found) <= FLAT

    @pytest.mark.parametrize("name", SMALL_STRUCTURES)
    def test_changes_nothing_once_the_blocks_have_some_features(self, name: str) -> None:
        found = check_widths(STRUCTURES[name], widths=WIDTHS[2:], seeds=SEEDS)
        assert feature_spread(found) <= FLAT
        assert update_spread(found) <= FLAT

    @pytest.mark.parametrize("name", ["dense", "BTT rank 1"])
    def test_changes_updates_at_one_rate_for_all(self, name: str) -> None:
        found = check_widths(STRUCTURES[name], rule="one rate", seeds=FEW_SEEDS)
        assert found["blocks"].update_spread > 2

    def test_changes_features_at_one_initial_scale_for_all(self) -> None:
        def unscaled(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
            layer = nn.Linear(d_in, d_out, bias=False)
            nn.init.normal_(layer.weight, std=0.02)
            return layer

        found = check_widths(unscaled, seeds=FEW_SEEDS)
        assert found["blocks.0.up"].feature_spread == pytest.approx(math.sqrt(WIDTHS[-1] / WIDTHS[0]), rel=0.1)


class TestSharedMatrices:
    """Kronecker and general layers apply one matrix at sqrt(d) or d**(1/4) positions of an input: docs/benchmarks/mup.md."""

    @pytest.mark.parametrize("name", SHARED_STRUCTURES)
    def test_start_the_same_at_every_width(self, name: str) -> None:
        assert feature_spread(check_widths(STRUCTURES[name], widths=EVEN_WIDTHS, seeds=SEEDS)) <= FLAT

    @pytest.mark.parametrize(("name", "growth"), [("Kronecker", 4), ("general", 2)])
    def test_move_less_by_at_most_the_root_of_how_many_more_positions_they_have(self, name: str, growth: int) -> None:
        updates = check_widths(STRUCTURES[name], widths=EVEN_WIDTHS, seeds=SEEDS)["blocks"].updates
        assert FLAT < updates[EVEN_WIDTHS[0]] / updates[EVEN_WIDTHS[-1]] < math.sqrt(growth)

    @pytest.mark.parametrize("name", SHARED_STRUCTURES)
    def test_move_the_same_with_rates_that_grow_with_that_root(self, name: str) -> None:
        found = check_widths(STRUCTURES[name], widths=EVEN_WIDTHS, rule="shared", lr=PROPOSED_LR, seeds=MANY_SEEDS)
        assert found["blocks"].update_spread <= FLAT


class TestInitialScale:
    @pytest.mark.parametrize(
        ("name", "widths"),
        [*((name, WIDTHS) for name in (*SHARED_STRUCTURES, *NARROWING_STRUCTURES)), ("BTT rank 1", PRIME_WIDTHS)],
    )
    def test_is_as_small_as_the_spectral_condition_makes_it(self, name: str, widths: tuple[int, ...]) -> None:
        found = check_widths(STRUCTURES[name], widths=widths, seeds=SEEDS)["blocks.0.up"].features
        for width, rms in found.items():
            layer = STRUCTURES[name](width, width)
            assert isinstance(layer, EinsumLinear)
            rules = layer.lr_rules().values()
            by_hand = math.prod(min(1.0, math.sqrt(rule.fan_out / rule.fan_in)) for rule in rules)
            assert rms == pytest.approx(by_hand, rel=SPECTRAL_TOLERANCE)


class TestSgd:
    @pytest.mark.parametrize("name", ["dense", "low rank d/4", "Monarch, 4 blocks", "BTT rank 1"])
    def test_moves_features_the_same_at_every_width(self, name: str) -> None:
        found = check_widths(STRUCTURES[name], optimizer="sgd", widths=EVEN_WIDTHS, seeds=MANY_SEEDS)
        assert update_spread(found) <= FLAT

    def test_does_not_by_the_papers_rule_where_blocks_become_more(self) -> None:
        found = check_widths(
            STRUCTURES["BTT rank 1"], optimizer="sgd", widths=EVEN_WIDTHS, rule="published", seeds=MANY_SEEDS
        )
        assert update_spread(found) > FLAT


class TestDepth:
    @pytest.mark.parametrize("name", ["dense", "BTT rank 1", "Monarch, 4 blocks"])
    def test_changes_neither_features_nor_their_updates(self, name: str) -> None:
        found = check_depths(STRUCTURES[name], seeds=FEW_SEEDS)
        assert found.feature_spread <= FLAT
        assert found.update_spread <= FLAT

    def test_changes_updates_if_only_the_branches_are_scaled(self) -> None:
        found = check_depths(STRUCTURES["BTT rank 1"], scale_rates=False, seeds=FEW_SEEDS)
        assert found.feature_spread <= FLAT
        assert found.update_spread > 2

    def test_changes_features_if_nothing_is_scaled(self) -> None:
        found = check_depths(STRUCTURES["BTT rank 1"], scale_branches=False, scale_rates=False, seeds=FEW_SEEDS)
        assert found.feature_spread > 2


class TestCoordinateCheck:
    """The measurement itself, on a model whose coordinates are known by hand."""

    def test_measures_sizes_and_moves(self) -> None:
        found = check(Scalar)["layer"]
        # The loss is the mean output, so that a step of SGD moves the one weight, which starts as the size, by the rate.
        assert found.features == {2: 2.0, 4: 4.0}
        assert found.updates == pytest.approx({2: 3 * RATE, 4: 3 * RATE})
        assert found.feature_spread == 2.0
        assert found.update_spread == pytest.approx(1.0)

    def test_averages_over_seeds(self) -> None:
        first, second = (check(Random, seeds=[seed])["layer"].features[2] for seed in (0, 1))
        assert check(Random, seeds=[0, 1])["layer"].features[2] == pytest.approx((first + second) / 2)

    def test_leaves_the_random_numbers_of_others_alone(self) -> None:
        state = torch.get_rng_state()
        check(Random)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"sizes": [4]}, "sizes"),
            ({"seeds": []}, "seeds"),
            ({"num_steps": 0}, "num_steps"),
            ({"names": ["missing"]}, "names"),
            ({"names": ["unused"]}, "names"),
            ({"names": ["pair"]}, "names"),
        ],
    )
    def test_says_what_it_cannot_check(self, change: dict[str, object], field: str) -> None:
        with pytest.raises(FieldError) as caught:
            check(Scalar, **change)
        assert caught.value.field == field

    @pytest.mark.parametrize("values", [{1: 0.0, 2: 1.0}, {1: math.nan, 2: 1.0}, {1: 1.0, 2: math.inf}])
    def test_calls_nothing_flat_that_is_zero_or_not_finite(self, values: dict[int, float]) -> None:
        assert spread(values) == math.inf


RATE = 0.25


class Scalar(nn.Module):
    """``y = size * x`` with a learnable size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.unused = nn.Identity()
        self.pair = Pair()
        nn.init.constant_(self.layer.weight, size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.pair(y)
        return y


class Pair(nn.Module):
    """A module whose output is not one tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Random(Scalar):
    """``y = w x`` with a random w."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        nn.init.normal_(self.layer.weight)


def check(model: type[Scalar], **change: object) -> dict[str, Coordinates]:
    arguments: dict[str, object] = {"sizes": [2, 4], "names": ["layer"], "num_steps": 3, "seeds": [0]}
    return coordinate_check(
        model,
        loss=lambda net: net(torch.ones(5, 1)).mean(),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=RATE),
        **(arguments | change),  # type: ignore[arg-type]
    )
