"""What the benchmarks of the GPU make of their figures: rows, goals, and sections of a page; values in, text out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from benchmarks.gpu_kernels import RANKS, WIDTHS, btt
from benchmarks.proxies.tables import table
from einlayers.fused import policy
from einlayers.fused.sizes import Sizes, backward_floor, dense_floor, forward_floor
from einlayers.fused.tiles import expected_seconds, expected_training_seconds, unfused_seconds

TOKENS = (8192, 65536)

COLUMNS = ["d", "rank", "tokens", "error", "floor", "dense", "reference", "torch", "fused", "fused, compiled"]
COLUMNS += ["of dense", "of reference", "floor f+b", "dense f+b", "reference f+b", "torch f+b", "fused f+b"]
COLUMNS += ["fused, compiled f+b", "of dense f+b", "of reference f+b"]
"""Times in microseconds; ``of`` tells how many times as fast as that the faster of both fused ones is."""

_LONG = 65536
_TWICE_THE_FLOOR = {1: 500e-6, 4: 700e-6}
"""Seconds that y may take at width 4096 with so many tokens, by rank."""

_FROM = {1: 1024, 4: 2048}
"""The width from which forward and backward are to be faster than dense, by rank."""

_AGAINST_REFERENCE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One size: the error of the kernels, and the seconds of every implementation, forward, and forward and backward."""

    width: int
    rank: int
    tokens: int
    error: float
    forward: Mapping[str, float]
    training: Mapping[str, float]

    def cells(self) -> list[str]:
        """The row of the table."""
        cells = [str(self.width), str(self.rank), str(self.tokens), f"{self.error:.1e}"]
        least = floors(btt(self.width, self.rank), self.tokens)
        for seconds, floor in zip((self.forward, self.training), least, strict=True):
            times = [floor, *(seconds[name] for name in ("dense", "reference", "torch", "fused", "fused, compiled"))]
            cells += [f"{1e6 * time:.0f}" for time in times]
            cells += [f"{times_as_fast(seconds, name):.2f}" for name in ("dense", "reference")]
        return cells


def expectations(num_tokens: int = _LONG) -> str:
    """The table of what is known before anything is timed: floors, and the model's times, in microseconds of an H200."""
    lines = []
    for width, rank in product(WIDTHS, RANKS):
        sizes = btt(width, rank)
        dense = 1e6 * dense_floor(sizes, num_tokens).seconds
        unfused = 1e6 * unfused_seconds(sizes, num_tokens)
        forward, training = (1e6 * seconds for seconds in floors(sizes, num_tokens))
        expected = 1e6 * expected_seconds(sizes, num_tokens)
        expected_training = 1e6 * expected_training_seconds(sizes, num_tokens)
        times = [dense, unfused, forward, expected, 3 * dense, training, expected_training]
        share = sizes.weights / (sizes.inputs * sizes.outputs)
        is_served = "yes" if policy.is_served(sizes, torch.bfloat16) else "no"
        lines.append([width, rank, f"{share:.3f}", *(f"{time:.0f}" for time in times), is_served])
    columns = ["d", "rank", "FLOPs / dense", "dense", "not fused", "fused, floor", "fused, expected"]
    return table([*columns, "dense f+b", "fused f+b, floor", "fused f+b, expected", "served"], lines)


def floors(sizes: Sizes, num_tokens: int) -> tuple[float, float]:
    """The least seconds, forward, and forward and backward."""
    forward = forward_floor(sizes, num_tokens).seconds
    return forward, forward + backward_floor(sizes, num_tokens).seconds


def times_as_fast(seconds: Mapping[str, float], other: str) -> float:
    """How many times as fast as another the kernels are, compiled or not."""
    return seconds[other] / min(seconds["fused"], seconds["fused, compiled"])


def goals(rows: Sequence[Row]) -> str:
    """The table of the goals that these rows tell something about."""
    return table(["goal", "d", "rank", "tokens", "asked", "measured", "kept"], _goals(rows))


def _goals(rows: Sequence[Row]) -> list[list[str]]:
    lines = []
    for row in rows:
        size = [str(row.width), str(row.rank), str(row.tokens)]
        if row.tokens == _LONG and row.width == 4096 and row.rank in _TWICE_THE_FLOOR:
            most = _TWICE_THE_FLOOR[row.rank]
            time = min(row.forward["fused"], row.forward["fused, compiled"])
            asked, measured = f"at most {1e6 * most:.0f} us", f"{1e6 * time:.0f} us"
            lines.append(["forward within twice the floor", *size, asked, measured, _kept(time <= most)])
        if row.tokens == _LONG and row.width >= _FROM.get(row.rank, row.width + 1):
            times = times_as_fast(row.training, "dense")
            lines.append(["f+b against dense", *size, "above 1", f"{times:.2f}", _kept(times > 1)])
        for name, seconds in (("forward", row.forward), ("f+b", row.training)):
            times = times_as_fast(seconds, "reference")
            line = [f"{name} against the reference", *size, f"at least {_AGAINST_REFERENCE}", f"{times:.2f}"]
            lines.append([*line, _kept(times >= _AGAINST_REFERENCE)])
    return lines


def with_section(page: str, name: str, text: str) -> str:
    """The page with other text between its marks of this name.

    Raises:
        ValueError: the page has no such marks.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found_start, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"expected the marks {start.strip()} and {end} in the page, found them nowhere")
    return f"{before}{start}{text}\n{end}{after}"


def _kept(is_kept: bool) -> str:
    return "kept" if is_kept else "missed"
