"""How the benchmarks of layers take time: one thread, its CPU time, an allocator that keeps its memory, shuffled rounds."""

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

import torch

Key = TypeVar("Key")

_BUSY = 0.85
_LEAST_SECONDS = 0.05

_ENVIRONMENT = {
    # glibc maps outputs beyond 32 MiB anew at every call and gives freed memory back; the page faults then dominate.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def prepare(module: str) -> None:
    """One thread, fixed seeds, and the allocator's settings, which it reads at the start: ``module`` may be started anew."""
    if any(os.environ.get(name) != value for name, value in _ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | _ENVIRONMENT)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)


def rounds_of(runs: Mapping[Key, Callable[[], object]], repeats: int = 1) -> Iterator[dict[Key, float]]:
    """Endless rounds, in each of which every run is timed once, in an order of its own: CPU seconds per call."""
    order = list(runs)
    while True:
        random.shuffle(order)
        yield {key: timed(runs[key], repeats) for key in order}


def calm_medians(runs: Mapping[Key, Callable[[], object]], anchor: Key, rounds: int) -> dict[Key, float]:
    """The median seconds of each run, over the rounds in which ``anchor`` was at 85% of its best rate or above.

    Raises:
        RuntimeError: there were too few such rounds.
    """
    for run in runs.values():
        run()
    # Small ones several times in a row: one call takes less time than what an interruption adds to it.
    repeats = max(1, round(_LEAST_SECONDS / timed(runs[anchor])))
    seconds: list[dict[Key, float]] = []
    for times in islice(rounds_of(runs, repeats), 4 * rounds):
        seconds.append(times)
        best = min(times[anchor] for times in seconds)
        calm = [times for times in seconds if times[anchor] <= best / _BUSY]
        if len(calm) >= rounds:
            return {key: statistics.median(times[key] for times in calm) for key in runs}
    raise RuntimeError(f"{anchor} never kept its rate: this machine is too busy to measure on")


def timed(run: Callable[[], object], repeats: int = 1) -> float:
    """The CPU seconds of this thread per call."""
    start = time.thread_time()
    for _ in range(repeats):
        run()
    return (time.thread_time() - start) / repeats
