"""Break a service for as long as it takes, and count what it lost: nothing, and nothing is there twice.

    python -m tests.faults.soak --faults 200 --seed 0 --database sqlite
    python -m tests.faults.soak --faults 200 --seed 0 --database postgres

One ``einsearch up`` with two runners carries out many short searches, while one fault after another hits it and users steer
their searches. Every row that is left in the end is audited, and the report becomes a section of ``docs/reliability.md``.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from search.states import SearchState
from service.models import Reason
from tests.databases import KINDS
from tests.faults.findings import Findings, Hit, describe_machine, render, write
from tests.faults.harm import FAULTS, num_lost_attempts
from tests.faults.ledger import Ledger, read_ledger, violations
from tests.faults.schedule import HEAVY, LIGHT, OF_POSTGRES, Step, make_schedule
from tests.faults.site import Site, new_site, wait_until
from tests.faults.workload import Workload

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


def soak(site: Site, steps: Sequence[Step], seed: int, say: Callable[[str], None]) -> Findings:
    """Take the steps one by one, wait for the end of all searches, and audit what is left."""
    begin, hits, load = time.monotonic(), [], []
    with closing(Workload(site.service.url, seed)) as work:
        for number, step in enumerate(steps, start=1):
            hits.append(_take(site, work, step))
            load.append(os.getloadavg()[0])
            say(f"{number:4} {step.fault}: over it in {hits[-1].seconds:.1f} s, {hits[-1].lost} attempts lost")
        wait_until(work.finish, "the end of all searches")
        ledgers = [read_ledger(site.database, search_id) for search_id in work.ids.values()]
        return Findings(
            database="sqlite" if site.database.is_sqlite else "postgres",
            seed=seed,
            seconds=time.monotonic() - begin,
            load=sum(load) / len(load),
            hits=hits,
            actions=work.actions,
            ledgers=ledgers,
            violations=[*(wrong for ledger in ledgers for wrong in violations(ledger)), *_unwanted(work, ledgers)],
        )


def _take(site: Site, work: Workload, step: Step) -> Hit:
    work.top_up()
    if step.action is not None:
        work.act(step.action, step.action_pick)
    lost, begin = num_lost_attempts(site), time.monotonic()
    over = FAULTS[step.fault](site, work, step.pick)
    wait_until(over, f"the service to be over: {step.fault}")
    return Hit(fault=step.fault, seconds=time.monotonic() - begin, lost=num_lost_attempts(site) - lost)


def _unwanted(work: Workload, ledgers: Sequence[Ledger]) -> list[str]:
    """Searches that are there twice, or ended otherwise than they were told to."""
    found = [search["name"] for search in work.client.searches() if search["name"].startswith("soak ")]
    wrong = [f"{name} is there {found.count(name)} times" for name in work.ids if found.count(name) != 1]
    for search in (ledger.search for ledger in ledgers):
        as_told = search.state is SearchState.CANCELLED and search.id in work.cancelled
        spent = search.state is SearchState.COMPLETED and search.reason in (
            Reason.BUDGET_TRIALS,
            Reason.BUDGET_TRAIN_FLOPS,
        )
        if not (as_told or spent):
            wrong.append(f"search {search.id} ended as {search.state}, {search.reason}")
    return wrong


def main(arguments: Sequence[str]) -> int:
    """Soak, print and write the report; 1 where anything was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=KINDS, default="sqlite")
    options = parser.parse_args(arguments)
    faults = {**LIGHT, **HEAVY, **(OF_POSTGRES if options.database == "postgres" else {})}
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        new_site(options.database, Path(folder) / "home") as site,
    ):
        steps = make_schedule(options.seed, options.faults, faults)
        findings = soak(site, steps, options.seed, lambda line: print(line, flush=True))
        section = render(findings, describe_machine(site.database))
    print(section)
    write(DOCUMENT, options.database, section)
    return 1 if findings.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
