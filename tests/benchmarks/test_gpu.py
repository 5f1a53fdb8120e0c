"""What the benchmarks of the GPU can do without one: compile, judge figures, keep a page, and say that there is none."""

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_kernels, gpu_layers, gpu_steps, gpu_tiles
from benchmarks.gpu_kernels import btt, passes
from benchmarks.gpu_report import COLUMNS, Row, expectations, goals, times_as_fast, with_section
from benchmarks.layers import papers_btt, papers_layout
from einlayers.contraction import two_einsums
from einlayers.families import btt_dims
from einlayers.fused.tiles import MOST_SHARED, ranked_tiles, shared_bytes

ROOT = Path(__file__).parents[2]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def row(width: int, rank: int, tokens: int, fused: float, **others: float) -> Row:
    seconds: Mapping[str, float] = {
        "dense": 1.0,
        "reference": 1.5,
        "torch": 2.0,
        "fused": fused,
        "fused, compiled": 3.0,
    } | others
    return Row(width=width, rank=rank, tokens=tokens, error=1e-3, forward=seconds, training=seconds)


def run(*arguments: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    """In a process that interprets nothing, and finds nothing compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


class TestKernels:
    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton is there for Linux alone")
    def test_compile_for_hopper_within_its_processors(self, tmp_path: Path) -> None:
        """Without a GPU: shared memory as it was counted, tensor cores, and no register of y spilled."""
        asked = ("--widths", "1024", "--ranks", "1", "--dtypes", "bfloat16")
        done = run("benchmarks.gpu_kernels", *asked, cache=tmp_path)
        assert done.returncode == 0, done.stderr
        columns, _, *lines = map(cells, done.stdout.strip().splitlines())
        assert columns == gpu_kernels.COLUMNS
        chosen = list(passes(btt(1024, 1), 2))
        assert [line[3] for line in lines] == [name for name, *_ in chosen] == ["y", "dx", "dP, dQ"]
        for line, (_, kernel, _, tile) in zip(lines, chosen, strict=True):
            shared, registers, spilled, mma = map(int, line[6:10])
            assert shared == shared_bytes(kernel, tile, 2) // 1024 <= MOST_SHARED // 1024
            assert registers <= 255
            assert mma > 0
            assert spilled == 0


class TestReference:
    def test_is_the_papers(self) -> None:
        torch.manual_seed(0)
        dims = btt_dims(48, 48, 2)
        x_TI, A, B = torch.randn(7, 48).double(), torch.randn(dims.shape_A).double(), torch.randn(dims.shape_B).double()
        P, Q = papers_layout(A, B)
        found = gpu_layers.reference(x_TI, P, Q)
        torch.testing.assert_close(found, papers_btt(x_TI, P, Q))
        torch.testing.assert_close(found, two_einsums(x_TI, A, B, "A_first"))


class TestReport:
    def test_has_a_cell_for_every_column(self) -> None:
        found = dict(zip(COLUMNS, row(4096, 1, 65536, 0.5).cells(), strict=True))
        # From the estimates that were made before.
        assert (found["floor"], found["floor f+b"]) == ("250", "625")
        assert (found["of dense"], found["of reference"]) == ("2.00", "3.00")
        assert (found["fused"], found["fused, compiled"]) == ("500000", "3000000")

    def test_keeps_what_is_expected_in_the_page(self) -> None:
        assert expectations() in gpu_layers.PAGE.read_text()

    def test_takes_the_faster_of_both(self) -> None:
        seconds = {"dense": 6.0, "fused": 3.0, "fused, compiled": 2.0}
        assert times_as_fast(seconds, "dense") == 3.0


class TestGoals:
    @pytest.mark.parametrize(
        ("rank", "micros", "verdict"), [(1, 500, "kept"), (1, 501, "missed"), (4, 700, "kept"), (4, 701, "missed")]
    )
    def test_ask_for_twice_the_floor_at_4096(self, rank: int, micros: int, verdict: str) -> None:
        assert self._verdicts(row(4096, rank, 65536, micros / 1e6), "forward within") == [verdict]
        assert self._verdicts(row(4096, rank, 8192, micros / 1e6), "forward within") == []
        assert self._verdicts(row(2048, rank, 65536, micros / 1e6), "forward within") == []

    @pytest.mark.parametrize(("width", "rank", "asked"), [(1024, 1, True), (1024, 4, False), (2048, 4, True)])
    def test_ask_to_be_faster_than_dense_from_a_width_on(self, width: int, rank: int, asked: bool) -> None:
        for seconds, verdict in ((0.9, "kept"), (1.1, "missed")):
            assert self._verdicts(row(width, rank, 65536, seconds), "f+b against dense") == [verdict] * asked

    @pytest.mark.parametrize(("seconds", "verdict"), [(1.0, "kept"), (1.01, "missed"), (math.nan, "missed")])
    def test_ask_for_half_again_the_rate_of_the_reference_everywhere(self, seconds: float, verdict: str) -> None:
        for width, tokens in ((1024, 8192), (8192, 65536)):
            found = self._verdicts(row(width, 4, tokens, seconds), "against the reference")
            assert found == [verdict] * 2

    @staticmethod
    def _verdicts(of: Row, goal: str) -> list[str]:
        lines = map(cells, goals([of]).splitlines()[2:])
        return [line[-1] for line in lines if goal in line[0]]


class TestSteps:
    def test_at_equal_flops_cost_what_dense_costs(self) -> None:
        setting = gpu_steps.equal_flops(256)
        for structure in ("BTT rank 1", "BTT, rho 1/4"):
            assert setting.flops(structure) == pytest.approx(1, abs=0.05)
            assert setting.width(structure) > 256

    def test_at_equal_width_cost_less(self) -> None:
        setting = gpu_steps.equal_width(1024)
        assert {setting.width(structure) for structure in ("dense", "BTT rank 1", "BTT rank 4")} == {1024}
        assert setting.flops("BTT rank 1") < setting.flops("BTT rank 4") < 0.3

    @pytest.mark.parametrize(
        ("kernel", "kind"),
        [
            ("two_factor_kernel", "fused kernels"),
            ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NTT", "products"),
            ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "products"),
            ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits>", "attention"),
            ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
            ("Memcpy DtoD (Device -> Device)", "copies"),
            ("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernel>", "elementwise, sums"),
        ],
    )
    def test_tell_kernels_by_their_names(self, kernel: str, kind: str) -> None:
        assert gpu_steps.kind_of(kernel) == kind

    def test_tell_where_the_time_went(self) -> None:
        kernels = [("two_factor_kernel", 0.5), ("gemm", 0.25), ("gemm", 0.25), ("softmax", 0.5)]
        found = gpu_steps.shares_of(kernels, 2.0)
        assert found == dict.fromkeys(gpu_steps.KINDS, 0.0) | {
            "fused kernels": 0.25,
            "products": 0.25,
            "elementwise, sums": 0.25,
            "idle": 0.25,
        }


class TestTiles:
    def test_put_the_model_beside_the_clock(self) -> None:
        first, second = ranked_tiles("two_factor", btt(1024, 1), 2, 65536)[:2]
        lines = gpu_tiles.rows(1024, 1, "two_factor", 65536, {first: 2e-4, second: 1e-4})
        by_name = [dict(zip(gpu_tiles.COLUMNS, line, strict=True)) for line in lines]
        assert [line["measured, us"] for line in by_name] == ["200", "100"]
        assert [line["of the fastest"] for line in by_name] == ["0.50", "1.00"]
        assert float(str(by_name[0]["model, us"])) <= float(str(by_name[1]["model, us"]))


class TestPage:
    def test_changes_between_the_marks_alone(self) -> None:
        page = "a\n<!-- layers -->\nold\n<!-- end of layers -->\nb\n"
        changed = with_section(page, "layers", "new")
        assert changed == "a\n<!-- layers -->\nnew\n<!-- end of layers -->\nb\n"
        assert with_section(changed, "layers", "old") == page

    def test_has_the_marks_of_both_benchmarks(self) -> None:
        text = gpu_layers.PAGE.read_text()
        for name in ("layers", "steps"):
            assert with_section(text, name, "new") != text

    def test_without_marks_is_not_written(self) -> None:
        with pytest.raises(ValueError, match="expected the marks"):
            with_section("<!-- layers -->\n", "layers", "new")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", ["gpu_layers", "gpu_steps", "gpu_tiles"])
def test_without_a_gpu_they_say_so(module: str, tmp_path: Path) -> None:
    done = run(f"benchmarks.{module}", cache=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "needs a GPU" in done.stderr
