"""What the service adds to a trial: everything around a trivial one, on a real local Ray with eight logical slots.

    python -m benchmarks.scheduling [NUM_TRIALS]

A trivial trial returns at once, so the wall-clock time per trial is what the service takes for it: record, propose, claim,
submit, and Ray's way there and back. Measured with SQLite and, where its programs are installed, with a Postgres of our own
(without fsync, as in the tests). The goal is at most 10 ms. The share of the sampler is printed beside it: TPE learns from
the whole history at every ask, which is its own cost and none of the scheduling.
"""

import logging
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import ray

from search.proxies.char_lm import CharLM
from search.sampling import Random as RandomSampling
from search.sampling import SamplerSpec, Tpe
from search.spec import Budget, SearchSpec
from search.trial import Outcome, TrialSpec
from service import leases, listings, searches
from service.database import Database
from service.listings import Filters
from service.models import Trial
from service.paging import PageRequest
from service.runner import Runner
from tests.databases import KINDS, Databases, MissingPrograms
from workers.ray_pool import RayPool
from workers.slot import Slot
from workers.workspace import Workspace

GOAL_MS = 10.0
NUM_SLOTS = 8
WARM = 40
"""Trials before the measured ones: slots start, caches fill."""


class TrivialSlot(Slot):
    """A slot whose trials end as soon as they begin."""

    def run(self, key: str, spec: TrialSpec, owner: str) -> Outcome:
        """See ``Slot.run``."""
        return Outcome.completed(loss=float(spec.theta.alpha) + 1.0)


def main(num_trials: int) -> None:
    """Measure both samplers on both databases and print a line for each."""
    ray.init(
        address="local", num_cpus=NUM_SLOTS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    print(f"{NUM_SLOTS} logical slots; milliseconds per trivial trial; the goal is {GOAL_MS:g} without the sampler")
    print("database  sampler  trials   wall  sampler  scheduling  p90 between starts")
    for seed, kind in enumerate(KINDS):
        # Not the same structures again: this process would remember their widths.
        samplers: list[SamplerSpec] = [RandomSampling(seed=seed), Tpe(seed=seed)]
        with _database(kind) as database:
            for sampler in samplers if database else []:
                assert database is not None
                _report(kind, sampler, *_measure(database, sampler, num_trials))
    ray.shutdown()


def _report(kind: str, sampler: SamplerSpec, gaps: list[float], asking: float) -> None:
    wall = statistics.fmean(gaps)
    verdict = "ok" if wall - asking <= GOAL_MS else "MISSED"
    print(
        f"{kind:9} {sampler.kind:7} {len(gaps):7} {wall:6.1f} {asking:8.1f} {wall - asking:11.1f} "
        f"{statistics.quantiles(gaps, n=10)[-1]:19.1f}  {verdict}",
        flush=True,
    )


def _measure(database: Database, sampler: SamplerSpec, num_trials: int) -> tuple[list[float], float]:
    """Times between the starts of trials, and the mean time of an ask, all in milliseconds."""
    spec = SearchSpec(
        name=f"scheduling {sampler.kind}",
        proxy=CharLM(train_flops=1e6, depth=1, dense_width=32, base_lr=5e-3),
        sampler=sampler,
        budget=Budget(max_trials=num_trials + WARM),
        concurrency=NUM_SLOTS,
    )
    with database.write() as session:
        search_id = searches.submit(session, spec, None).search.id
        runner_id = leases.enrol(session, 60).id
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(cache_dir=Path(folder))
        pool = RayPool(workspace, address="local", namespace=runner_id, owner=runner_id, slot_class=TrivialSlot)
        runner = Runner(database, pool, runner_id, 60)
        while runner.turn(0.2):
            pass
        for name in pool.slots():
            pool.remove(name)
    asked = runner.stats.ask
    starts = [trial.attempts[0].started_at for trial in _trials(database, search_id)][WARM:]
    gaps = [1e3 * (after - before).total_seconds() for before, after in pairwise(sorted(starts))]
    return gaps, 1e3 * asked.seconds / sum(asked.counts)


def _trials(database: Database, search_id: str) -> Iterator[Trial]:
    page = PageRequest(size=500)
    while True:
        with database.read() as session:
            found = listings.trials(session, search_id, page, Filters())
        yield from found.items
        if found.next_token is None:
            return
        page = PageRequest(size=500, token=found.next_token)


@contextmanager
def _database(kind: str) -> Iterator[Database | None]:
    """A fresh database of this kind; None where its programs are not installed."""
    with tempfile.TemporaryDirectory() as folder, closing(Databases(Path(folder))) as databases:
        try:
            server = databases.of(kind)
        except MissingPrograms as missing:
            print(f"{kind:9} left out: {missing}")
            yield None
            return
        with server.migrated() as url, closing(Database(url)) as database:
            yield database


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
