"""Which tiles are chosen: they fit on the chip, cover what they must, and move no more than any other that fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einlayers.fused.sizes import Sizes
from einlayers.fused.tiles import (
    MOST_SHARED,
    MULTIPROCESSORS,
    Kernel,
    Tile,
    choose_tile,
    expected_seconds,
    expected_training_seconds,
    num_splits,
    ranked_tiles,
    seconds_per_token,
    shared_bytes,
    traffic,
)
from tests.einlayers.fused.test_sizes import btt

KERNELS = st.sampled_from(["two_factor", "gradient", "gradients"])
SIZES = st.builds(
    Sizes,
    gamma=st.integers(1, 200),
    i=st.integers(1, 128),
    phi=st.integers(1, 200),
    rho=st.integers(1, 16),
    o=st.integers(1, 128),
)


class TestTiles:
    @given(kernel=KERNELS, sizes=SIZES, itemsize=st.sampled_from([2, 4]), num_tokens=st.integers(0, 100_000))
    def test_fit_on_the_chip(self, kernel: Kernel, sizes: Sizes, itemsize: int, num_tokens: int) -> None:
        tile = choose_tile(kernel, sizes, itemsize, num_tokens)
        if tile is None:
            return
        assert shared_bytes(kernel, tile, itemsize) <= MOST_SHARED
        for held in (tile.tokens, tile.gamma, tile.phi, tile.rho, tile.i, tile.o):
            assert held & (held - 1) == 0
        # One product covers all features of a block and all of the rank.
        assert (tile.rho, tile.i, tile.o) >= (sizes.rho, sizes.i, sizes.o)
        # The inner sides of the products, of which Triton takes none below 16.
        assert min(tile.i, tile.gamma * tile.rho, tile.tokens) >= 16

    @pytest.mark.parametrize("width", [128, 512, 1024, 2048, 4096, 8192])
    @pytest.mark.parametrize("rank", [1, 4])
    def test_exist_for_every_layer_of_the_benchmarks(self, width: int, rank: int) -> None:
        for itemsize in (2, 4) if width < 8192 else (2,):
            for sizes in (btt(width, rank), btt(width, rank).transposed()):
                assert choose_tile("two_factor", sizes, itemsize, 65536) is not None
                assert choose_tile("gradient", sizes, itemsize, 65536) is not None

    @given(kernel=KERNELS, sizes=SIZES, itemsize=st.sampled_from([2, 4]))
    def test_are_ranked_by_what_they_should_take(self, kernel: Kernel, sizes: Sizes, itemsize: int) -> None:
        ranked = ranked_tiles(kernel, sizes, itemsize, 4096)
        seconds = [seconds_per_token(kernel, sizes, tile, itemsize) for tile in ranked]
        assert seconds == sorted(seconds)
        assert choose_tile(kernel, sizes, itemsize, 4096) == (ranked[0] if ranked else None)

    def test_have_no_more_tokens_than_there_are(self) -> None:
        tile = choose_tile("two_factor", btt(1024, 1), 2, 17)
        assert tile is not None
        assert tile.tokens <= 32

    def test_move_what_is_counted_by_hand(self) -> None:
        sizes = Sizes(gamma=64, i=64, phi=64, rho=1, o=64)
        tile = Tile(tokens=32, gamma=16, phi=16, rho=1, i=64, o=64, stages=2)
        # x four times, y once, and all weights once for 32 tokens.
        assert traffic("two_factor", sizes, tile, 2) == 2 * (4 * 4096 + 4096 + 2 * 64**3 / 32)
        # x and dy four times each.
        assert traffic("gradients", sizes, tile, 2) == 2 * (4 * 4096 + 4 * 4096)

    def test_of_large_layers_move_less_the_more_they_hold(self) -> None:
        sizes = btt(4096, 1)
        chosen = choose_tile("two_factor", sizes, 2, 65536)
        assert chosen is not None
        small = Tile(tokens=16, gamma=16, phi=8, rho=1, i=64, o=64, stages=3)
        assert traffic("two_factor", sizes, chosen, 2) < traffic("two_factor", sizes, small, 2)


class TestSplits:
    @given(sizes=SIZES, num_tokens=st.integers(0, 100_000))
    def test_give_every_processor_work_and_none_without_tokens(self, sizes: Sizes, num_tokens: int) -> None:
        tile = choose_tile("gradient", sizes, 2, num_tokens)
        if tile is None:
            return
        splits = num_splits(sizes, tile, num_tokens)
        programs = -(-sizes.phi // tile.phi) * -(-sizes.gamma // tile.gamma)
        assert 1 <= splits <= max(1, -(-num_tokens // tile.tokens))
        assert splits == 1 or splits * programs <= MULTIPROCESSORS


class TestExpectations:
    def test_are_above_the_floors_and_tell_what_is_not_served(self) -> None:
        for width in (1024, 2048, 4096, 8192):
            for rank in (1, 4):
                sizes = btt(width, rank)
                assert 0 < expected_seconds(sizes, 65536) < expected_training_seconds(sizes, 65536) < float("inf")
        assert expected_seconds(Sizes(gamma=2, i=4096, phi=2, rho=1, o=4096), 8) == float("inf")
