"""How the benchmarks of layers take time: one thread, its CPU time, an allocator that keeps its memory, shuffled rounds."""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key")

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


def timed(run: Callable[[], object], repeats: int = 1) -> float:
    """The CPU seconds of this thread per call."""
    start = time.thread_time()
    for _ in range(repeats):
        run()
    return (time.thread_time() - start) / repeats
