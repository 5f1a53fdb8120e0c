"""Record the table of really trained structures, in the service itself; interrupted at any time, the same command goes on.

python -m benchmarks.search.record             # hundreds of structures, three seeds each: an hour on two cores
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.search.contestants import PROXY
from benchmarks.search.objectives import SHARES, TABLE, Row, write_rows
from einlayers.theta import NAMED, Theta
from einsearch.answers import Trial
from einsearch.client import Client
from einsearch.embedded import Embedded, Options
from search.designs import PAPERS_GRID
from search.structure import structure_of
from search.studies.structures import RandomStructures

NAME = "the recorded table"
NUM_REPLICATES = 3
RANDOM = RandomStructures(count=400, seed=1)


def main() -> None:
    """Train what has not been trained, and write all of it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".einsearch-table"))
    arguments = parser.parse_args()
    with Embedded(Options(home=arguments.home, port=0), say=_say) as service, Client(service.url) as client:
        search = next((search for search in client.searches() if search["name"] == NAME), None)
        search = search or client.submit(_spec())
        while search["state"] not in ("COMPLETED", "FAILED", "CANCELLED"):
            time.sleep(10)
            search = client.search(search["id"])
        write_rows([_row(client, trial) for trial in client.trials(search["id"]) if trial["state"] == "COMPLETED"])
    _say(f"wrote {TABLE}")


def structures() -> list[Theta]:
    """The named designs, the papers' grid and random ones, every model once, without dense: every search has it beside it,
    and none looks for it."""
    dense = structure_of(NAMED["dense"], PROXY).digest
    found: dict[str, Theta] = {}
    for theta in (*NAMED.values(), *PAPERS_GRID, *RANDOM.on(PROXY)):
        digest = structure_of(theta, PROXY).digest
        if digest != dense:
            found.setdefault(digest, theta)
    return list(found.values())


def _spec() -> dict[str, Any]:
    runs = [{"theta": asdict(theta)} for _ in range(NUM_REPLICATES) for theta in structures()]
    return {
        "name": NAME,
        "budget": {"max_trials": len(runs)},
        "proxy": "screening",
        "sampler": {"kind": "plan", "runs": runs},
    }


def _row(client: Client, trial: Trial) -> Row:
    # Points lie at half powers of two of the steps; every second one from the last is a halving.
    losses = [point["loss"] for point in client.measurements(trial["id"])][::-2][: len(SHARES)][::-1]
    return Row(theta=Theta(**trial["theta"]), width=trial["width"], seed=trial["seed"], losses=tuple(losses))


def _say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    main()
