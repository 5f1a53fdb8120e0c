"""Training steps of the papers' character GPT on a GPU: tokens per second, where time goes, and trials that share a card.

    python -m benchmarks.gpu_steps                       # writes the tables into docs/performance.md
    python -m benchmarks.gpu_steps --widths 1024 --print

A step is the one of a trial, in bfloat16 by autocast (``benchmarks.proxies`` has the same on a CPU). Structures have the
width of dense, or the width at which they cost what dense costs. Each is trained eagerly and compiled, with the fused
kernels and without, by turns; the figures are medians, by the clock, after the GPU has finished. The kernels' times are of
torch's profiler. Sharing is by processes, and by streams of one process that queues steps for each by turns.
"""

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_layers import PAGE
from benchmarks.gpu_report import with_section
from benchmarks.gpu_timing import require_gpu
from benchmarks.proxies import sharing
from benchmarks.proxies.settings import RANK_ONE, Setting, gpt
from benchmarks.proxies.tables import table
from einlayers.fused.switch import use_fused_kernels
from search.proxies.char_lm import CharLM
from workers.training import Training
from workers.workspace import Workspace

WIDTHS, WIDTHS_OF_DENSE, BATCH, ROUNDS = (1024, 2048), (256, 512), 32, 3
STRUCTURES = ("dense", RANK_ONE, "BTT rank 4", "BTT, rho 1/4")
SHARED = (1, 2, 4)

_SECONDS = 1.0
_PROFILED_STEPS = 5
_FIRST_STEPS = 3

KINDS = {
    "fused kernels": ("two_factor_kernel", "gradients_kernel"),
    "attention": ("flash", "fmha", "attention", "cudnn_generated"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "splitk", "xmma"),
    "optimiser": ("adam", "multi_tensor", "foreach", "lerp"),
    "copies": ("copy", "memcpy", "memset", "cat"),
}
"""Which words in the name of a GPU kernel tell what it is for, in this order; anything else is elementwise work and sums."""

_OTHER = "elementwise, sums"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a step is computed."""

    is_compiled: bool
    is_fused: bool

    def __str__(self) -> str:
        return f"{'compiled' if self.is_compiled else 'eager'}{', fused' if self.is_fused else ''}"


def kind_of(kernel: str) -> str:
    """What a GPU kernel is for, by its name."""
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), _OTHER)


def shares_of(kernels: Iterable[tuple[str, float]], elapsed: float) -> dict[str, float]:
    """Of an elapsed time, the share that kernels of each kind took, and the share in which none ran."""
    found = dict.fromkeys([*KINDS, _OTHER], 0.0)
    for name, seconds in kernels:
        found[kind_of(name)] += seconds / elapsed
    return found | {"idle": max(0.0, 1 - sum(found.values()))}


def equal_width(width: int) -> Setting:
    """All structures in the width of dense."""
    return gpt(width, BATCH)


def equal_flops(width: int) -> Setting:
    """Every structure in the width at which it costs what dense costs at ``width``, several times as wide: so more heads."""
    proxy = CharLM(
        dense_width=width,
        depth=3,
        num_heads=width // 32,
        context=128,
        batch_size=BATCH,
        base_lr=CharLM.SHIPPED_LR,
    )
    return Setting(name=f"equal FLOPs, dense {width}, batch {BATCH}", proxy=proxy)


def steps(setting: Setting, folder: Path, rounds: int) -> tuple[list[list[str]], list[list[str]]]:
    """The rows of both tables of a setting: rates, and where the time goes."""
    rates, times = [], []
    base = 0.0
    for structure in [name for name in STRUCTURES if name in setting.structures]:
        ways = [
            Way(is_compiled=c, is_fused=f) for c in (False, True) for f in (False, True)[: 1 + (structure != "dense")]
        ]
        for way in ways:
            torch.compiler.reset()
            with use_fused_kernels(way.is_fused):
                training = _begun(setting, structure, folder, way)
                shares = [sharing.share(training, _SECONDS, setting.proxy.examples_per_step) for _ in range(rounds)]
                where = _profiled(training)
            rate = statistics.median(share.rate for share in shares)
            base = base or rate
            name = [setting.name, structure, str(setting.width(structure)), str(way)]
            rates.append([*name, f"{setting.flops(structure):.3f}", f"{rate:,.0f}", f"{rate / base:.2f}"])
            times.append([*name, *(f"{100 * share:.0f}%" for share in where.values())])
            del training
            torch.cuda.empty_cache()
    return rates, times


def _begun(setting: Setting, structure: str, folder: Path, way: Way) -> Training:
    training = setting.begin(structure, Workspace(cache_dir=folder), device="cuda")
    training.advance()  # the first step looks into the model, which a compiled one does not let it
    if way.is_compiled:
        training.model.compile()
    for _ in range(_FIRST_STEPS):
        training.advance()
    return training


def _profiled(training: Training) -> dict[str, float]:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        for _ in range(_PROFILED_STEPS):
            training.advance()
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - started
    kernels = [(event.key, event.self_device_time_total / 1e6) for event in profiler.key_averages()]
    return shares_of(kernels, elapsed)


def streams(setting: Setting, structure: str, folder: Path) -> list[list[str]]:
    """Trainings in one process, a stream each: the rate of all together, by how many they are."""
    trainings = []
    for seed in range(max(SHARED)):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            training = setting.begin(structure, Workspace(cache_dir=folder), device="cuda", seed=seed)
            for _ in range(_FIRST_STEPS):
                training.advance()
        trainings.append((stream, training))
    torch.cuda.synchronize()
    rates = {}
    for count in SHARED:
        started, num_steps = time.perf_counter(), 0
        while time.perf_counter() - started < _SECONDS:
            for stream, training in trainings[:count]:
                with torch.cuda.stream(stream):
                    training.advance()
            num_steps += count
            torch.cuda.synchronize()
        rates[count] = num_steps * setting.proxy.examples_per_step / (time.perf_counter() - started)
    name = f"{setting.name}, {structure}"
    return [[name, "streams", str(n), f"{rate:,.0f}", f"{rate / rates[1]:.2f}"] for n, rate in rates.items()]


def processes(setting: Setting, structure: str, folder: Path, rounds: int) -> list[list[str]]:
    """The same by processes."""
    crowds = sharing.measure(setting, structure, folder, SHARED, seconds=_SECONDS, rounds=rounds, device="cuda")
    return [
        [
            f"{setting.name}, {structure}",
            "processes",
            str(crowd.num_processes),
            f"{crowd.rate:,.0f}",
            f"{crowd.rate / crowds[0].rate:.2f}",
        ]
        for crowd in crowds
    ]


def section(settings: list[Setting], shared: Setting, folder: Path, rounds: int) -> str:
    """All tables."""
    rates, times = [], []
    for setting in settings:
        found = steps(setting, folder, rounds)
        rates += found[0]
        times += found[1]
    together = []
    for structure in ("dense", RANK_ONE):
        together += [*processes(shared, structure, folder, rounds), *streams(shared, structure, folder)]
    name = ["setting", "structure", "width", "way"]
    return "\n\n".join(
        [
            table([*name, "FLOPs / dense", "tokens per second", "against dense, eager"], rates),
            table([*name, *KINDS, _OTHER, "idle"], times),
            table(["what", "by", "at once", "tokens per second, all", "against one"], together),
        ]
    )


def main() -> None:
    """Measure; print it, and write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    parser.add_argument("--widths-of-dense", type=int, nargs="*", default=WIDTHS_OF_DENSE, help="at equal FLOPs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--print", action="store_true", help="leave the page as it is")
    asked = parser.parse_args()
    require_gpu("benchmarks.gpu_steps")
    settings = [*map(equal_width, asked.widths), *map(equal_flops, asked.widths_of_dense)]
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {datetime.date.today():%-d %B %Y}"
    with tempfile.TemporaryDirectory(prefix="einsearch-benchmark-") as folder:
        text = f"Measured on {machine}.\n\n{section(settings, gpt(256, BATCH), Path(folder), asked.rounds)}"
    print(text)
    if not asked.print:
        PAGE.write_text(with_section(PAGE.read_text(), "steps", text))


if __name__ == "__main__":
    main()
