"""Compare samplers: trials to a good structure, and what a proposal takes; writes ``docs/benchmarks/search.md``.

python -m benchmarks.search                                    # ten seeds of a hundred trials, on everything
python -m benchmarks.search --seeds 3 --trials 40 --out -      # a look
"""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.search.asks import asks
from benchmarks.search.contestants import CONTESTANTS, DEFAULT, RANDOM
from benchmarks.search.objectives import LANDSCAPES, TABLE, Objective, Table, recorded
from benchmarks.search.regret import Regrets, race
from benchmarks.search.report import report
from benchmarks.search.stopping import PRUNERS, Stopped, stopped_race


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
    objectives: list[Objective] = [*LANDSCAPES, *([table] if table else [])]
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        found = {
            objective.name: races(processes, objective, arguments.seeds, arguments.trials) for objective in objectives
        }
        stopped = (
            {
                (sampler, pruner): stops(processes, table, sampler, pruner, arguments.seeds, arguments.trials)
                for sampler in (RANDOM, DEFAULT)
                for pruner in PRUNERS
            }
            if table
            else {}
        )
    text = report(found, table=table, stopped=stopped, asks=dict(asks((100, 1_000, 10_000))))
    if arguments.out == "-":
        print(text)
    else:
        Path(arguments.out).write_text(text)


def races(processes: ProcessPoolExecutor, objective: Objective, num_seeds: int, num_trials: int) -> dict[str, Regrets]:
    """The regrets of every contestant."""
    asked = list(product(CONTESTANTS, range(num_seeds)))
    regrets = list(
        processes.map(_race, *zip(*[(name, objective, seed, num_trials) for name, seed in asked], strict=True))
    )
    found: dict[str, list[Sequence[float]]] = {}
    for (name, _), each in zip(asked, regrets, strict=True):
        found.setdefault(name, []).append(each)
    return {name: np.array(each) for name, each in found.items()}


def stops(
    processes: ProcessPoolExecutor, table: Table, sampler: str, pruner: str, num_seeds: int, num_trials: int
) -> Sequence[Stopped]:
    """Searches with this sampler and this pruner, by seed."""
    asked = [(table, sampler, pruner, seed, num_trials) for seed in range(num_seeds)]
    return list(processes.map(_stop, *zip(*asked, strict=True)))


def _stop(table: Table, sampler: str, pruner: str, seed: int, num_trials: int) -> Stopped:
    return stopped_race(CONTESTANTS[sampler](seed, num_trials), table, seed, num_trials, PRUNERS[pruner])


def _race(name: str, objective: Objective, seed: int, num_trials: int) -> list[float]:
    return race(CONTESTANTS[name](seed, num_trials), objective, seed, num_trials)


if __name__ == "__main__":
    main()
