"""Sizes, and floors against the estimates that were made before the kernels (for 65,536 tokens of bfloat16 on an H200)."""

import pytest

from einlayers.errors import FieldError
from einlayers.families import btt_dims
from einlayers.fused.sizes import Sizes, backward_floor, dense_floor, forward_floor
from einlayers.fused.tiles import unfused_seconds
from einlayers.taxonomy import cost

ESTIMATES = [
    # d, rank; microseconds: dense and fused forward, fused forward and backward, not fused forward
    (1024, 1, 174, 62, 156, 187),
    (1024, 4, 174, 63, 171, 562),
    (2048, 1, 696, 125, 312, 375),
    (2048, 4, 696, 130, 435, 1124),
    (4096, 1, 2784, 250, 625, 749),
    (4096, 4, 2784, 348, 1218, 2248),
    (8192, 1, 11134, 500, 1251, 1499),
    (8192, 4, 11134, 1044, 3479, 4498),
]


def btt(width: int, rank: int) -> Sizes:
    dims = btt_dims(width, width, rank)
    return Sizes(gamma=dims.gamma, i=dims.alpha, phi=dims.phi, rho=dims.rho, o=dims.epsilon)


class TestSizes:
    def test_count_what_the_layer_costs(self) -> None:
        for width, rank in ((48, 1), (512, 4), (1000, 3)):
            sizes, known = btt(width, rank), cost(btt_dims(width, width, rank))
            assert (sizes.weights, sizes.weights) == (known.params, known.macs)
            assert sizes.intermediate == known.intermediate

    def test_are_exchanged_on_the_way_back(self) -> None:
        sizes = Sizes(gamma=2, i=3, phi=5, rho=7, o=11)
        assert sizes.transposed() == Sizes(gamma=5, i=11, phi=2, rho=7, o=3)
        assert sizes.transposed().weights == sizes.weights
        assert (sizes.inputs, sizes.outputs) == (6, 55)

    @pytest.mark.parametrize("name", ["gamma", "i", "phi", "rho", "o"])
    def test_are_positive(self, name: str) -> None:
        with pytest.raises(FieldError, match=name):
            Sizes(**{"gamma": 1, "i": 1, "phi": 1, "rho": 1, "o": 1, name: 0})


class TestFloors:
    @pytest.mark.parametrize(("width", "rank", "dense", "forward", "training", "unfused"), ESTIMATES)
    def test_are_those_that_were_estimated(
        self, width: int, rank: int, dense: int, forward: int, training: int, unfused: int
    ) -> None:
        sizes = btt(width, rank)
        floors = (dense_floor(sizes, 65536), forward_floor(sizes, 65536), backward_floor(sizes, 65536))
        of_dense, of_forward, of_backward = (1e6 * floor.seconds for floor in floors)
        found = [of_dense, of_forward, of_forward + of_backward]
        # What was estimated left out the weights and used rounded products.
        assert found == pytest.approx([dense, forward, training], rel=0.02)
        assert 1e6 * unfused_seconds(sizes, 65536) == pytest.approx(unfused, rel=0.02)

    def test_count_bytes_and_flops(self) -> None:
        sizes = Sizes(gamma=2, i=3, phi=5, rho=7, o=11)  # x of 6, y of 55, 980 weights
        floor = forward_floor(sizes, 10, itemsize=4)
        assert (floor.bytes, floor.flops) == (4 * (10 * (6 + 55) + 980), 2 * 10 * 980)
        floor = backward_floor(sizes, 10, itemsize=4)
        assert (floor.bytes, floor.flops) == (4 * (10 * (2 * 6 + 55) + 2 * 980), 10 * (4 * 980 + 2 * 70 * 3))
