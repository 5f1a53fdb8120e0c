"""Training steps on a GPU, where there is one: bfloat16 as the service trains there, memory, and trials that share it.

This has never been run: no GPU was at hand when it was written. Time is that of the clock, after the GPU has finished.
"""

import random
import statistics
from pathlib import Path

import torch

from benchmarks.proxies import sharing
from benchmarks.proxies.settings import DEFAULT, RANK_ONE, Setting, gpt
from benchmarks.proxies.sharing import Share
from benchmarks.proxies.tables import table
from workers.workspace import Workspace

SETTINGS = (gpt(256, 32), gpt(1024, 32))
_SECONDS = 2.0
_COUNTS = (1, 2, 4)


def steps(setting: Setting, cache_dir: Path, rounds: int) -> str:
    """The table of all structures of a setting, which are trained by turns."""
    workspace, examples = Workspace(cache_dir=cache_dir), setting.proxy.examples_per_step
    memory: dict[str, int] = {}
    trainings = {}
    for structure in setting.structures:
        # What the others have allocated stays: of each, what it adds at its peak.
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        trainings[structure] = setting.begin(structure, workspace, device="cuda")
        trainings[structure].advance()
        trainings[structure].advance()  # the second step is the first that has the optimiser's state
        memory[structure] = torch.cuda.max_memory_allocated() - before
    found: dict[str, list[Share]] = {structure: [] for structure in trainings}
    for _ in range(rounds):
        for structure in random.sample(list(trainings), len(trainings)):
            found[structure].append(sharing.share(trainings[structure], _SECONDS, examples))
    rates = {structure: statistics.median(each.rate for each in shares) for structure, shares in found.items()}
    return table(
        ["setting", "structure", "FLOPs / dense", "examples per second", "ours / dense", "peak, MiB"],
        (
            [
                setting.name,
                structure,
                f"{setting.flops(structure):.3f}",
                f"{rate:,.0f}",
                f"{rate / rates['dense']:.2f}",
                f"{memory[structure] / 2**20:.0f}",
            ]
            for structure, rate in rates.items()
        ),
    )


def shared(cache_dir: Path, rounds: int) -> str:
    """The table of several trials at once on the one GPU."""
    return sharing.summary(
        {
            f"{setting.name}, {structure}": sharing.measure(
                setting, structure, cache_dir, _COUNTS, seconds=_SECONDS, rounds=rounds, device="cuda"
            )
            for setting in (DEFAULT, SETTINGS[0])
            for structure in ("dense", RANK_ONE)
        }
    )
