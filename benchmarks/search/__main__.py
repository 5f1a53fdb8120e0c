"""Compare samplers: trials to a good structure, and what a proposal takes; writes ``docs/benchmarks/search.md``.

python -m benchmarks.search                                    # ten seeds of a hundred trials, on everything
python -m benchmarks.search --seeds 3 --trials 40 --out -      # a look
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.search.asks import asks
from benchmarks.search.contestants import CONTESTANTS, DEFAULT, QMC, RANDOM
from benchmarks.search.objectives import LANDSCAPES, TABLE, Interpolated, Objective, read_table
from benchmarks.search.regret import Regrets
from benchmarks.search.report import report
from benchmarks.search.searches import OTHER_DRAWS, PRUNERS, Searched, search

STOPPED = (RANDOM, QMC, DEFAULT)
"""Whose searches are made with early stopping too."""

FIRST_STOPPED = 100
"""The first seed of these: others than the settings of pruners were chosen on."""


def main() -> None:
    """Race them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--stopped-trials", type=int, default=150, help="of the searches with early stopping")
    parser.add_argument("--out", default="docs/benchmarks/search.md", help="a file, or - for the terminal")
    arguments = parser.parse_args()
    recorded = Interpolated(read_table(TABLE)) if TABLE.exists() else None
    if recorded is None:
        print(f"there is no {TABLE.name}: on landscapes alone; python -m benchmarks.search.record makes it")
    objectives: Sequence[Objective] = [*LANDSCAPES, *([recorded] if recorded else [])]
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        found = {
            objective.name: regrets(
                searches(
                    processes,
                    [(name, objective, "none") for name in CONTESTANTS],
                    range(arguments.seeds),
                    arguments.trials,
                )
            )
            for objective in objectives
        }
        tables = [recorded.table] if recorded else []
        asked = [(name, table, pruner) for name, pruner, table in product(STOPPED, [*PRUNERS, OTHER_DRAWS], tables)]
        seeds = range(FIRST_STOPPED, FIRST_STOPPED + arguments.seeds)
        stopped = searches(processes, asked, seeds, arguments.stopped_trials)
    text = report(found, recorded=recorded, stopped=stopped, asks=dict(asks((100, 1_000, 10_000))))
    if arguments.out == "-":
        print(text)
    else:
        Path(arguments.out).write_text(text)


def searches(
    processes: ProcessPoolExecutor, asked: Sequence[tuple[str, Objective, str]], seeds: Sequence[int], num_trials: int
) -> dict[tuple[str, str], Sequence[Searched]]:
    """Of every contestant, on an objective, with a pruner: a search from every seed."""
    found = {
        (name, pruner): [processes.submit(search, name, objective, pruner, seed, num_trials) for seed in seeds]
        for name, objective, pruner in asked
    }
    return {key: [each.result() for each in searches] for key, searches in found.items()}


def regrets(found: Mapping[tuple[str, str], Sequence[Searched]]) -> dict[str, Regrets]:
    """By contestant, over seeds and trials."""
    return {name: np.array([each.regrets for each in searches]) for (name, _), searches in found.items()}


if __name__ == "__main__":
    main()
