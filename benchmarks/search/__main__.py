"""Compare samplers: trials to a good structure, and what a proposal takes; writes ``docs/benchmarks/search.md``.

python -m benchmarks.search                                    # ten seeds of a hundred trials, on everything
python -m benchmarks.search --seeds 3 --trials 40 --out -      # a look
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.search.asks import asks
from benchmarks.search.contestants import CONTESTANTS, DEFAULT, QMC, RACING, RANDOM
from benchmarks.search.objectives import LANDSCAPES, TABLE, Objective, recorded
from benchmarks.search.regret import Regrets
from benchmarks.search.report import report
from benchmarks.search.searches import OTHER_DRAWS, PRUNERS, Searched, search

STOPPED = (RANDOM, QMC, DEFAULT, RACING)
"""Whose searches are made with early stopping too."""


def main() -> None:
    """Race them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--out", default="docs/benchmarks/search.md", help="a file, or - for the terminal")
    arguments = parser.parse_args()
    table = recorded(TABLE) if TABLE.exists() else None
    if table is None:
        print(f"there is no {TABLE.name}: on landscapes alone; python -m benchmarks.search.record makes it")
    objectives: Sequence[Objective] = [*LANDSCAPES, *([table] if table else [])]
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        run = partial(searches, processes, num_seeds=arguments.seeds, num_trials=arguments.trials)
        found = {
            objective.name: regrets(run([(name, objective, "none") for name in CONTESTANTS]))
            for objective in objectives
        }
        stopped = (
            run([(name, table, pruner) for name, pruner in product(STOPPED, [*PRUNERS, OTHER_DRAWS])]) if table else {}
        )
    text = report(found, table=table, stopped=stopped, asks=dict(asks((100, 1_000, 10_000))))
    if arguments.out == "-":
        print(text)
    else:
        Path(arguments.out).write_text(text)


def searches(
    processes: ProcessPoolExecutor, asked: Sequence[tuple[str, Objective, str]], *, num_seeds: int, num_trials: int
) -> dict[tuple[str, str], Sequence[Searched]]:
    """Of every contestant, on an objective, with a pruner: a search from every seed."""
    each_seed = [(*each, seed, num_trials) for each in asked for seed in range(num_seeds)]
    found = list(processes.map(search, *zip(*each_seed, strict=True)))
    return {(name, pruner): found[i * num_seeds : (i + 1) * num_seeds] for i, (name, _, pruner) in enumerate(asked)}


def regrets(found: Mapping[tuple[str, str], Sequence[Searched]]) -> dict[str, Regrets]:
    """By contestant, over seeds and trials."""
    return {name: np.array([each.regrets for each in searches]) for (name, _), searches in found.items()}


if __name__ == "__main__":
    main()
