"""The switch and the table of what is served; the layers' own tests are in ``test_layers``."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from einlayers.families import btt_dims
from einlayers.fused.policy import SERVED, computed_in, is_large_enough, is_served
from einlayers.fused.sizes import Sizes
from einlayers.fused.switch import is_on, use_fused_kernels
from einlayers.fused.tiles import expected_seconds, unfused_seconds
from tests.einlayers.fused.test_sizes import btt

LAYERS = """
import torch
from einlayers import EinsumLinear, use_fused_kernels
layer, x_TI = EinsumLinear.btt(64, 64, rank=2), torch.randn(5, 64)
y_TO = layer(x_TI)
use_fused_kernels()
assert torch.equal(layer(x_TI), y_TO)
from einlayers.fused.ops import two_factor
print(two_factor(torch.ones(2, 6), torch.ones(2, 5, 1, 3), torch.ones(5, 2, 1, 4)).sum().item())
"""


class TestSwitch:
    def test_is_off_unless_it_is_turned_on(self) -> None:
        assert not is_on()
        with use_fused_kernels():
            assert is_on()
            with use_fused_kernels(False):
                assert not is_on()
            assert is_on()
        assert not is_on()

    def test_stays_where_it_was_put(self) -> None:
        switch = use_fused_kernels()
        try:
            assert is_on()
        finally:
            switch.__exit__(None, None, None)
        assert not is_on()

    @pytest.mark.parametrize("blocked", ["triton", "nothing"])
    def test_changes_nothing_where_no_kernel_runs(self, blocked: str) -> None:
        """On a CPU that is not told to interpret, with and without Triton."""
        block = "import sys; sys.modules['triton'] = None" if blocked == "triton" else ""
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        run = [sys.executable, "-W", "error", "-c", f"{block}\n{LAYERS}"]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"{2 * 20 * 6.0}\n"), done.stderr

    def test_costs_nothing_as_long_as_it_is_off(self) -> None:
        """Torch's compiler and Triton take seconds to load, which every new slot of a service would pay."""
        program = (
            "import sys, torch; from einlayers import EinsumLinear; EinsumLinear.btt(64, 64)(torch.ones(1, 64));"
            "print([name for name in ('torch._dynamo', 'triton', 'einlayers.fused.ops') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


class TestTable:
    @pytest.mark.parametrize("dtype", list(SERVED), ids=str)
    @pytest.mark.parametrize("rank", [1, 2, 4])
    def test_serves_block_tensor_trains_that_the_model_expects_to_gain(self, dtype: torch.dtype, rank: int) -> None:
        served = [width for width in (128, 256, 512, 1024, 2048, 4096, 8192) if is_served(btt(width, rank), dtype)]
        assert {128, 256, 512} <= set(served)
        for width in served:
            sizes = btt(width, rank)
            for num_tokens in (8192, 65536):
                expected = expected_seconds(sizes, num_tokens, dtype.itemsize)
                assert expected < unfused_seconds(sizes, num_tokens, dtype.itemsize)

    def test_serves_the_layers_of_a_feed_forward_block_of_1024(self) -> None:
        for d_in, d_out in ((1024, 4096), (4096, 1024)):
            dims = btt_dims(d_in, d_out, 1)
            sizes = Sizes(gamma=dims.gamma, i=dims.alpha, phi=dims.phi, rho=1, o=dims.epsilon)
            assert is_served(sizes, torch.bfloat16)

    @pytest.mark.parametrize(
        ("sizes", "why"),
        [
            (btt(8192, 1), "too wide"),
            (btt(1024, 32), "of too high a rank"),
            (Sizes(gamma=4, i=256, phi=4, rho=4, o=256), "blocks that are large products as they are"),
            (Sizes(gamma=1, i=64, phi=1, rho=16, o=64), "low rank"),
            (Sizes(gamma=64, i=1, phi=64, rho=1, o=1), "dense"),
            (Sizes(gamma=40, i=25, phi=25, rho=1, o=40), "rows that are not loaded 16 bytes at a time"),
        ],
    )
    def test_leaves_to_torch(self, sizes: Sizes, why: str) -> None:
        assert not is_served(sizes, torch.bfloat16), why

    def test_serves_no_other_type(self) -> None:
        assert not is_served(btt(1024, 1), torch.float64)

    def test_has_tiles_for_all_that_it_serves(self) -> None:
        for dtype, limits in SERVED.items():
            blocks = limits.width // limits.block
            assert is_served(Sizes(gamma=blocks, i=limits.block, phi=blocks, rho=1, o=limits.block), dtype)


class TestGPU:
    @pytest.mark.parametrize(
        ("major", "minor", "shared", "fits"),
        [(9, 0, 232448, True), (10, 0, 232448, True), (12, 0, 101376, False), (8, 0, 166912, False)],
        ids=["Hopper", "Blackwell", "Blackwell for desktops", "Ampere"],
    )
    def test_has_to_have_what_the_tiles_are_made_for(self, major: int, minor: int, shared: int, fits: bool) -> None:
        gpu = SimpleNamespace(major=major, minor=minor, shared_memory_per_block_optin=shared)
        assert is_large_enough(gpu) is fits

    def test_that_does_not_tell_its_shared_memory_is_not_served(self) -> None:
        assert not is_large_enough(SimpleNamespace(major=9, minor=0))


class TestType:
    def test_is_the_one_of_all_or_that_of_autocast(self) -> None:
        x_TI, A, B = (torch.ones(2, 2) for _ in range(3))
        assert computed_in(x_TI, A, B) == torch.float32
        assert computed_in(x_TI, A.half(), B) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert computed_in(x_TI, A.half(), B) == torch.bfloat16
        assert computed_in(x_TI.to("meta"), A, B) is None
