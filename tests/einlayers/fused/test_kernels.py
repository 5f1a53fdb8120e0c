"""The kernels against float64: every class of shapes and type, any tile, buffers that show what was not written."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from einlayers.fused import launch
from einlayers.fused.sizes import Sizes
from einlayers.fused.tiles import Tile, choose_tile
from tests.einlayers.fused.layers import DEVICE, SIZES, assert_near, exact, exact_gradients, layer, poisoned

NUM_TOKENS = 37


@pytest.fixture(params=list(SIZES.values()), ids=list(SIZES))
def sizes(request: pytest.FixtureRequest) -> Sizes:
    which: Sizes = request.param
    return which


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    which: torch.dtype = request.param
    return which


class TestKernels:
    def test_give_y_and_dx(self, sizes: Sizes, dtype: torch.dtype) -> None:
        x_TI, P, Q, dy_TO = layer(sizes, NUM_TOKENS, dtype)
        y_TO = launched(x_TI, P, Q)
        assert y_TO.dtype == dtype
        assert_near(y_TO, exact(x_TI.double(), P.double(), Q.double()), dtype)
        assert_near(launched(dy_TO, Q, P), exact_gradients(x_TI, P, Q, dy_TO)[0], dtype)

    def test_give_the_gradients_of_both_factors(self, sizes: Sizes, dtype: torch.dtype) -> None:
        x_TI, P, Q, dy_TO = layer(sizes, NUM_TOKENS, dtype)
        _, dP, dQ = exact_gradients(x_TI, P, Q, dy_TO)
        together = launch.gradients(x_TI, P, Q, dy_TO)
        for found, expected in zip(together, (dP, dQ), strict=True):
            assert_near(found, expected, dtype)
        assert_near(launch.gradient(x_TI, P, dy_TO, Q), dQ, dtype)
        assert_near(launch.gradient(dy_TO, Q, x_TI, P), dP, dtype)

    @pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 64, 65, 130])
    def test_take_any_number_of_tokens(self, num_tokens: int) -> None:
        x_TI, P, Q, dy_TO = layer(SIZES["nothing a power of two"], num_tokens)
        assert_near(launched(x_TI, P, Q), exact(x_TI.double(), P.double(), Q.double()), torch.float32)
        _, dP, dQ = exact_gradients(x_TI, P, Q, dy_TO)
        found = launch.gradients(x_TI, P, Q, dy_TO)
        assert_near(found[0], dP, torch.float32)
        assert_near(found[1], dQ, torch.float32)

    def test_take_no_tokens(self) -> None:
        x_TI, P, Q, dy_TO = layer(SIZES["rank 4"], 0)
        assert launch.two_factor(x_TI, P, Q).shape == dy_TO.shape
        assert not any(gradient.any() for gradient in launch.gradients(x_TI, P, Q, dy_TO))

    def test_take_tensors_of_any_strides(self) -> None:
        x_TI, P, Q, dy_TO = layer(SIZES["rank 4"], NUM_TOKENS)
        expected = [launch.two_factor(x_TI, P, Q), *launch.gradients(x_TI, P, Q, dy_TO)]
        wide_TI = torch.cat([x_TI, x_TI], dim=1)[:, : x_TI.shape[1]]
        for strided in (wide_TI, x_TI.mT.contiguous().mT, torch.stack([x_TI, x_TI], dim=2)[..., 0]):
            found = [launch.two_factor(strided, P, Q), *launch.gradients(strided, P, Q, dy_TO)]
            assert all(map(torch.equal, found, expected))
        repeated_TO = dy_TO[:1].expand_as(dy_TO)
        found = [*launch.gradients(x_TI, _scattered(P), _scattered(Q), repeated_TO)]
        assert all(map(torch.equal, found, launch.gradients(x_TI, P, Q, repeated_TO.contiguous())))

    def test_do_not_read_past_a_view(self) -> None:
        sizes = SIZES["nothing a power of two"]
        x_TI, P, Q, dy_TO = layer(sizes, NUM_TOKENS)
        around = poisoned(NUM_TOKENS + 40, sizes.inputs + 30)
        inside_TI = around[20 : 20 + NUM_TOKENS, 10 : 10 + sizes.inputs]
        inside_TI.copy_(x_TI)
        assert torch.equal(launch.two_factor(inside_TI, P, Q), launch.two_factor(x_TI, P, Q))
        assert all(map(torch.equal, launch.gradients(inside_TI, P, Q, dy_TO), launch.gradients(x_TI, P, Q, dy_TO)))

    def test_give_the_same_bits_again(self) -> None:
        x_TI, P, Q, dy_TO = layer(SIZES["wide"], 200)
        assert all(map(torch.equal, launch.gradients(x_TI, P, Q, dy_TO), launch.gradients(x_TI, P, Q, dy_TO)))

    def test_sum_in_float32(self) -> None:
        """4097 tokens that each add 1 to a sum that ends where float16 counts in steps of 4."""
        sizes = Sizes(gamma=2, i=1, phi=2, rho=1, o=1)
        ones = [torch.ones(shape, dtype=torch.float16, device=DEVICE) for shape in ((4097, 2), (2, 2, 1, 1))]
        dQ = launch.gradient(ones[0], ones[1], ones[0], ones[1])
        assert launch.sizes_of(ones[1], ones[1]) == sizes
        assert (dQ.double() == 4097).all()  # in float16 the number itself would become 4096

    def test_refuse_what_fits_on_no_chip(self) -> None:
        sizes = Sizes(gamma=2, i=4096, phi=2, rho=1, o=4096)
        x_TI, P, Q, dy_TO = layer(sizes, 1)
        with pytest.raises(ValueError, match="expected sizes of which a tile fits"):
            launch.two_factor(x_TI, P, Q)
        with pytest.raises(ValueError, match="expected sizes of which a tile fits"):
            launch.gradients(x_TI, P, Q, dy_TO)


POWERS = st.sampled_from([1, 2, 4, 8])


class TestTiles:
    """What a program holds at once changes the order of sums and nothing else."""

    @settings(max_examples=12)
    @given(
        sizes=st.builds(
            Sizes,
            gamma=st.integers(1, 20),
            i=st.integers(1, 18),
            phi=st.integers(1, 20),
            rho=st.integers(1, 5),
            o=st.integers(1, 18),
        ),
        num_tokens=st.integers(0, 50),
        tokens=st.sampled_from([16, 32]),
        gamma=POWERS,
        phi=POWERS,
        num_splits=st.integers(1, 4),
    )
    def test_make_no_difference(
        self, sizes: Sizes, num_tokens: int, tokens: int, gamma: int, phi: int, num_splits: int
    ) -> None:
        padded = [
            max(least, 1 << (size - 1).bit_length()) for least, size in ((1, sizes.rho), (16, sizes.i), (16, sizes.o))
        ]
        rho, i, o = padded
        # The inner side of every product has at least 16 numbers.
        tile = Tile(tokens=tokens, gamma=max(gamma, 16 // rho), phi=phi, rho=rho, i=i, o=o, stages=2)
        x_TI, P, Q, dy_TO = layer(sizes, num_tokens, seed=num_tokens)
        y_TO = poisoned(*dy_TO.shape)
        launch.two_factor_into(x_TI, P, Q, y_TO, tile)
        assert_near(y_TO, exact(x_TI.double(), P.double(), Q.double()), torch.float32)
        dP_S, dQ_S = poisoned(num_splits, *P.shape), poisoned(num_splits, *Q.shape)
        launch.gradients_into(x_TI, P, Q, dy_TO, dP_S, dQ_S, tile)
        _, dP, dQ = exact_gradients(x_TI, P, Q, dy_TO)
        assert_near(dP_S.sum(0), dP, torch.float32)
        assert_near(dQ_S.sum(0), dQ, torch.float32)


class TestPrecision:
    def test_is_exact_unless_tf32_is_asked_for(self) -> None:
        assert launch.precision(torch.float32) == "ieee"
        torch.set_float32_matmul_precision("high")
        try:
            assert launch.precision(torch.float32) == "tf32"
            assert launch.precision(torch.bfloat16) == "ieee"
        finally:
            torch.set_float32_matmul_precision("highest")
        assert launch.precision(torch.float32) == "ieee"


def launched(x_TI: Tensor, P: Tensor, Q: Tensor) -> Tensor:
    """y in a poisoned buffer, by the tile that is chosen."""
    sizes = launch.sizes_of(P, Q)
    tile = choose_tile("two_factor", sizes, x_TI.itemsize, len(x_TI))
    assert tile is not None
    y_TO = poisoned(len(x_TI), sizes.outputs, dtype=x_TI.dtype)
    launch.two_factor_into(x_TI, P, Q, y_TO, tile)
    return y_TO


def _scattered(factor: Tensor) -> Tensor:
    return factor.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
