"""Several trainings at once, a process each: how far they share a machine's cores, or one GPU, without losing rate.

Time is that of the clock here, as it has to be, so that the figures mean something only where nothing else runs.
"""

import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.proxies.settings import Setting
from benchmarks.proxies.tables import table
from workers.training import Training
from workers.workspace import Workspace

_WARM_UP_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one process did while it was timed: examples per second, CPU-seconds per second, and the GPU's peak bytes."""

    rate: float
    cpu: float
    gpu_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """The medians of several processes at once: the rate of all together, CPU and GPU memory of each."""

    num_processes: int
    rate: float
    cpu: float
    gpu_bytes: int
    load: float


def measure(
    setting: Setting,
    structure: str,
    cache_dir: Path,
    counts: tuple[int, ...],
    *,
    seconds: float,
    rounds: int,
    device: str = "cpu",
) -> list[Crowd]:
    """Train so many at once, in shuffled order; the same processes every time, of which the others wait."""
    with _processes(max(counts), setting, structure, cache_dir, device) as connections:
        _at_once(connections, _WARM_UP_SECONDS)
        found: dict[int, list[list[Share]]] = {count: [] for count in counts}
        for _ in range(rounds):
            for count in random.sample(counts, len(counts)):
                found[count].append(_at_once(connections[:count], seconds))
    load = os.getloadavg()[0]
    return [_crowd(count, found[count], load) for count in counts]


def _crowd(count: int, rounds: list[list[Share]], load: float) -> Crowd:
    shares = [share for each in rounds for share in each]
    return Crowd(
        num_processes=count,
        rate=statistics.median(sum(share.rate for share in each) for each in rounds),
        cpu=statistics.median(share.cpu for share in shares),
        gpu_bytes=max(share.gpu_bytes for share in shares),
        load=load,
    )


def summary(found: dict[str, list[Crowd]]) -> str:
    """The table of processes at once, by what they train."""
    columns = ["what", "processes", "examples per second, all", "against one", "CPU of each", "GPU MiB of each", "load"]
    return table(
        columns,
        (
            [
                name,
                crowd.num_processes,
                f"{crowd.rate:,.0f}",
                f"{crowd.rate / crowds[0].rate:.2f}",
                f"{crowd.cpu:.2f}",
                f"{crowd.gpu_bytes / 2**20:.0f}" if crowd.gpu_bytes else "-",
                f"{crowd.load:.1f}",
            ]
            for name, crowds in found.items()
            for crowd in crowds
        ),
    )


@contextmanager
def _processes(
    count: int, setting: Setting, structure: str, cache_dir: Path, device: str
) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for seed in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, setting, structure, cache_dir, device, seed), daemon=True
        )
        process.start()
        connections.append(ours)
        processes.append(process)
    try:
        for connection in connections:
            connection.recv()  # it has begun
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join()


def _at_once(connections: list[Connection], seconds: float) -> list[Share]:
    for connection in connections:
        connection.send(seconds)
    return [connection.recv() for connection in connections]


def _serve(connection: Connection, setting: Setting, structure: str, cache_dir: Path, device: str, seed: int) -> None:
    torch.set_num_threads(1)
    training = setting.begin(structure, Workspace(cache_dir=cache_dir), device=device, seed=seed)
    training.advance()
    connection.send(None)
    while True:
        try:
            seconds = connection.recv()
        except EOFError:
            return
        connection.send(share(training, seconds, setting.proxy.examples_per_step))


def share(training: Training, seconds: float, examples_per_step: int) -> Share:
    """Train for so long."""
    on_gpu = training.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    started, cpu_started, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        training.advance()
        steps += 1
        if on_gpu:
            # A step is queued long before it is done: without this the end would come after many more.
            torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    return Share(
        rate=steps * examples_per_step / elapsed,
        cpu=(time.process_time() - cpu_started) / elapsed,
        gpu_bytes=torch.cuda.max_memory_allocated() if on_gpu else 0,
    )
