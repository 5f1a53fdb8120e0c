"""What the service adds to a trial: everything around a trivial one, on SQLite and a real local Ray.

    python -m benchmarks.scheduling [NUM_TRIALS]

One slot, so that nothing overlaps: per trial, the wall-clock time from one start to the next, less the time that the trial
itself takes in its slot. In between lie record, proposal, claim, submission. The goal is at most 25 ms.
"""

import logging
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import ray

from search.proxies import CharLM
from search.spec import Budget, SamplerSpec, SearchSpec, Space, Tpe
from search.spec import Random as RandomSampling
from service import repositories, searches
from service.database import Database
from service.migrate import upgrade
from service.models import Trial
from service.repositories import PageRequest
from service.runner import Runner
from workers.ray_pool import RayPool
from workers.workspace import Workspace

GOAL_MS = 25.0
WARM = 5
"""Trials before the measured ones: a slot's first loads torch and the corpus."""


def main(num_trials: int) -> None:
    """Measure both samplers and print a line for each."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    print("sampler  trials  median ms  mean ms  p90 ms  trial itself ms")
    samplers: list[SamplerSpec] = [RandomSampling(), Tpe()]
    with tempfile.TemporaryDirectory() as folder:
        for sampler in samplers:
            overheads, durations = _measure(Path(folder), sampler, num_trials)
            median, mean = statistics.median(overheads), statistics.fmean(overheads)
            verdict = "ok" if mean <= GOAL_MS else "MISSED"
            print(
                f"{sampler.kind:8} {len(overheads):6} {median:10.1f} {mean:8.1f} "
                f"{statistics.quantiles(overheads, n=10)[-1]:7.1f} {statistics.median(durations):16.1f}  "
                f"{verdict}: the goal is a mean of at most {GOAL_MS:g} ms"
            )
    ray.shutdown()


def _measure(folder: Path, sampler: SamplerSpec, num_trials: int) -> tuple[list[float], list[float]]:
    """Overheads and durations of the trials, both in milliseconds."""
    url = f"sqlite:///{folder / sampler.kind}.db"
    upgrade(url)
    database = Database(url)
    spec = SearchSpec(
        name=f"scheduling {sampler.kind}",
        proxy=CharLM(train_flops=1e6, depth=1, dense_width=32),
        space=Space(),
        sampler=sampler,
        budget=Budget(max_trials=num_trials + WARM),
        concurrency=1,
    )
    with database.write() as session:
        search_id = searches.submit(session, spec, None).search.id
    pool = RayPool(Workspace(cache_dir=folder), address="local", namespace=f"benchmark-{sampler.kind}")
    runner = Runner(database, pool)
    while runner.turn(0.2):
        pass
    with database.read() as session:
        trials = list(repositories.trials(session, search_id, PageRequest(size=num_trials + WARM)).items)
    database.close()
    for name in pool.slots():
        pool.remove(name)
    return _overheads(trials[WARM:])


def _overheads(trials: list[Trial]) -> tuple[list[float], list[float]]:
    starts = [trial.attempts[0].started_at for trial in trials]
    seconds = [trial.attempts[0].seconds or 0.0 for trial in trials]
    between = [(after - before).total_seconds() for before, after in pairwise(starts)]
    return [1e3 * (gap - own) for gap, own in zip(between, seconds[:-1], strict=True)], [1e3 * own for own in seconds]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
