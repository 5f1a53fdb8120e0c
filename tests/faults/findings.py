"""What a soak found, and its report: a section of a document that nobody edits by hand."""

import os
import platform
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import text

from search.states import AttemptState, SearchState
from service.database import Database
from tests.faults.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A fault as it went: seconds until the service was over it, attempts lost meanwhile."""

    fault: str
    seconds: float
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a soak was, and what was left after it."""

    database: str
    seed: int
    seconds: float
    load: float
    hits: Sequence[Hit]
    actions: Mapping[str, int]
    ledgers: Sequence[Ledger]
    violations: Sequence[str]

    @property
    def num_lost(self) -> int:
        """How many trials the searches owe."""
        return sum(ledger.num_lost for ledger in self.ledgers)

    @property
    def num_doubled(self) -> int:
        """How many trials ended, or count, more than once."""
        return sum(ledger.num_doubled for ledger in self.ledgers)


def render(findings: Findings, machine: str) -> str:
    """The report as Markdown."""
    return "\n".join([*_summary(findings, machine), "", *_table(findings), "", *_meanwhile(findings), ""])


def write(document: Path, name: str, section: str) -> None:
    """Put a section between the marks with its name.

    Raises:
        ValueError: the document has no such marks.
    """
    begin, end = f"<!-- soak on {name} -->", f"<!-- end of soak on {name} -->"
    old = document.read_text(encoding="utf-8")
    if begin not in old or end not in old:
        raise ValueError(f"expected the lines {begin} and {end} in {document.name}, got neither, or one")
    before, _, rest = old.partition(begin)
    after = rest.partition(end)[2]
    document.write_text(f"{before}{begin}\n{section}{end}{after}", encoding="utf-8")


def describe_machine(database: Database) -> str:
    """This machine, and the versions of what could lose something on it."""
    with database.read() as session:
        server = str(session.scalar(text("SELECT sqlite_version()" if database.is_sqlite else "SHOW server_version")))
    name = "SQLite" if database.is_sqlite else "Postgres"
    packages = [f"{package} {version(package)}" for package in ("ray", "sqlalchemy", "torch")]
    cores = f"{os.cpu_count()} cores of {_processor()}"
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{cores}, {system}, Python {platform.python_version()}, {name} {server.split()[0]}, {', '.join(packages)}"


def _summary(findings: Findings, machine: str) -> Iterator[str]:
    ledgers = findings.ledgers
    trials = [trial for ledger in ledgers for trial in ledger.trials]
    attempts = Counter(attempt.state for trial in trials for attempt in trial.attempts)
    states = Counter(ledger.search.state for ledger in ledgers)
    late = sum(attempt.late is not None for trial in trials for attempt in trial.attempts)
    name = "SQLite" if findings.database == "sqlite" else "Postgres"
    faults = len(findings.hits)
    yield f"## {name}: {faults} faults, {findings.num_lost} trials lost, {findings.num_doubled} doubled"
    yield ""
    yield f"{machine}; on average {findings.load:.1f} processes wanted to run."
    yield f"Seed {findings.seed}, {findings.seconds:.0f} s."
    yield ""
    yield "| what | how many |"
    yield "| --- | --- |"
    yield f"| searches completed with exactly their budget | {states[SearchState.COMPLETED]} |"
    yield f"| searches cancelled, as they were told to | {states[SearchState.CANCELLED]} |"
    yield f"| trials | {len(trials)} |"
    yield f"| attempts | {attempts.total()} |"
    yield f"| attempts lost, whose trials ran again | {attempts[AttemptState.LOST]} |"
    yield f"| attempts that wrote a checkpoint, whose trials went on from it | {attempts[AttemptState.CHECKPOINTED]} |"
    yield f"| outcomes that came after their attempt was given up, and counted for nothing | {late} |"
    yield f"| events, numbered without a gap | {sum(len(ledger.events) for ledger in ledgers)} |"
    yield f"| **trials lost** | **{findings.num_lost}** |"
    yield f"| **trials doubled** | **{findings.num_doubled}** |"
    yield f"| **anything else that is wrong in the database** | **{len(findings.violations)}** |"
    yield from (f"\n- {wrong}" for wrong in findings.violations)


def _table(findings: Findings) -> Iterator[str]:
    yield "| fault | times | attempts lost | median s to be over it | longest |"
    yield "| --- | --- | --- | --- | --- |"
    kinds: dict[str, list[Hit]] = {}
    for hit in findings.hits:
        kinds.setdefault(hit.fault, []).append(hit)
    for fault, hits in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        seconds = [hit.seconds for hit in hits]
        lost = sum(hit.lost for hit in hits)
        yield f"| {fault} | {len(hits)} | {lost} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |"


def _meanwhile(findings: Findings) -> Iterator[str]:
    yield "| users meanwhile | times |"
    yield "| --- | --- |"
    for action, number in sorted(findings.actions.items(), key=lambda item: (-item[1], item[0])):
        yield f"| {action} | {number} |"


def _processor() -> str:
    """The name of the processor, as Linux tells it."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.machine()
