"""Measure the fidelity of the proxies on this machine, and write ``docs/fidelity.md``.

Everything runs in the service itself, which keeps what is done: interrupted at any time, the same command goes on.
"""

import argparse
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fidelity.coverage import coverage
from benchmarks.fidelity.report import report
from benchmarks.fidelity.studies import STUDIES
from einsearch.answers import Study
from einsearch.client import Client
from einsearch.embedded import Embedded, Options

_POLL_SECONDS = 5.0


def main() -> None:
    """Begin what has not been begun, wait for everything, write down what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(".einsearch-fidelity"))
    parser.add_argument("--slots", type=int, default=None, help="trials at once; by default one per CPU")
    parser.add_argument("--out", type=Path, default=Path("docs/fidelity.md"))
    arguments = parser.parse_args()
    options = Options(home=arguments.home, port=0, slots=arguments.slots)
    with Embedded(options, say=_say) as service, Client(service.url) as client:
        found = measure(client, STUDIES)
    _say("checking the intervals of scaling studies on synthetic runs")
    covered = coverage(arguments.home / "coverage.json")
    machine = f"{os.cpu_count()} CPUs ({platform.machine()}), one thread a trial"
    arguments.out.write_text(report(found, covered, machine))
    _say(f"wrote {arguments.out}")


def measure(client: Client, specs: Sequence[Mapping[str, Any]]) -> list[Study]:
    """Begin these studies, but those that an earlier run has begun, and wait for all of them."""
    return _wait(client, [_begun(client, spec) for spec in specs])


def _begun(client: Client, spec: Mapping[str, Any]) -> Study:
    for study in client.studies(spec["kind"]):
        if study["name"] == spec["name"] and study["state"] != "FAILED":
            return study
    return client.submit_study(spec)


def _wait(client: Client, studies: list[Study]) -> list[Study]:
    told: set[str] = set()
    while True:
        studies = [client.study(study["kind"], study["id"]) for study in studies]
        for study in studies:
            if study["state"] != "RUNNING" and study["id"] not in told:
                told.add(study["id"])
                _say(f"{study['name']}: {study['state']} {study['reason'] or ''}")
        if len(told) == len(studies):
            return studies
        time.sleep(_POLL_SECONDS)


def _say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    main()
