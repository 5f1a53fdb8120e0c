"""How the benchmarks of the GPU take time: CUDA events, by turns, medians, inputs that the cache does not hold; or say that
there is no GPU."""

# T tokens, I inputs

import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from einlayers.fused import policy

Key = TypeVar("Key")

_LEAST_SECONDS = 2e-3
_ROTATED = 2**28
"""Bytes of inputs through which calls rotate: several times the cache of 50 MB."""


def require_gpu(module: str) -> None:
    """Fixed seeds; and the end, with status 2 and one line, where the kernels do not run."""
    if not torch.cuda.is_available() or not policy.runs_on(torch.device("cuda")):
        print(
            f"{module} needs a GPU that the kernels run on (CUDA, Hopper or later, Triton); here is none",
            file=sys.stderr,
        )
        raise SystemExit(2)
    torch.manual_seed(0)
    random.seed(0)


def beyond_cache(num_tokens: int, width: int) -> list[Tensor]:
    """Several inputs ``(T, I)`` in bfloat16, at least two."""
    copies = max(2, _ROTATED // (num_tokens * width * 2))
    return [torch.randn(num_tokens, width, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]


def medians(runs: Mapping[Key, Callable[[Tensor], None]], inputs: list[Tensor], rounds: int) -> dict[Key, float]:
    """Seconds of a call, each run by turns; short ones so often in a row that the clock's steps do not count."""
    rotated = _rotate(inputs)
    repeats = {}
    for name, run in runs.items():
        for _ in range(3):
            run(next(rotated))
        repeats[name] = max(1, round(_LEAST_SECONDS / _timed(run, rotated, 1)))
    seconds: dict[Key, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in random.sample(list(runs), len(runs)):
            seconds[name].append(_timed(runs[name], rotated, repeats[name]))
    return {name: statistics.median(times) for name, times in seconds.items()}


def _timed(run: Callable[[Tensor], None], inputs: Iterator[Tensor], repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(repeats):
        run(next(inputs))
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def _rotate(inputs: list[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from inputs
