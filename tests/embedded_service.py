"""The real thing: ``einsearch up`` as a process of its own, and the processes below it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from einsearch.answers import Search
from einsearch.client import Client
from tests.corpora import make_corpora
from tests.waiting import wait_for
from tests.workers.specs import SMALL

COMMAND = str(Path(sys.executable).with_name("einsearch"))


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    command: str

    def kill(self) -> None:
        """End it at once, without a chance to clean up."""
        os.kill(self.pid, signal.SIGKILL)


def processes() -> dict[int, Process]:
    """All processes of this machine, without those that are dead already, by their id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state != "Z":
            found[int(entry.name)] = Process(pid=int(entry.name), parent=int(parent), command=command)
    return found


def descendants(pid: int) -> list[Process]:
    """The processes below a process."""
    everyone = processes()
    below: list[Process] = []
    front = {pid}
    while front:
        children = [process for process in everyone.values() if process.parent in front]
        below += children
        front = {process.pid for process in children}
    return below


class EmbeddedService:
    """A running ``einsearch up`` with its addresses, as it printed them."""

    def __init__(
        self, home: Path, environment: Mapping[str, str], *, runners: int = 1, prefix: Sequence[str] = ()
    ) -> None:
        self.home = home
        self.output = home.parent / f"{home.name}.out"
        corpora_dir = make_corpora(home.parent / "corpora")
        size = ["--slots", "2", "--gpus", "1", "--runners", str(runners)]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*prefix, COMMAND, "up", "--home", str(home), "--port", "0", *size],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "EINSEARCH_CORPORA_DIR": str(corpora_dir), **environment},
            )
        wait_for(self._printed, until=lambda text: "database  " in text or self.process.poll() is not None, what="up")
        assert self.process.poll() is None, self._printed()
        self.url = self._address("API docs").removesuffix("/docs")
        self.dashboard_url = self._address("Ray dashboard")
        self.client = Client(self.url)

    def submit(self, name: str, *, trials: int, train_flops: float, **proxy: Any) -> str:
        """Submit a search of small models; its id."""
        return self.client.submit(small_search(name, trials=trials, train_flops=train_flops, **proxy))["id"]

    def wait_until_final(self, search_id: str) -> Search:
        """The search once it has ended."""
        return wait_for(
            lambda: self.client.search(search_id),
            until=lambda search: search["finished_at"],
            what="the end of the search",
        )

    def wait_until_running(self, search_id: str) -> list[str]:
        """The ids of the trials that run, once some do."""
        return wait_for(
            lambda: [trial["id"] for trial in self.client.trials(search_id) if trial["state"] == "RUNNING"],
            what="a running trial",
        )

    def children(self, command: str) -> list[Process]:
        """The processes below this service whose command line holds this text, once there is one."""
        return wait_for(
            lambda: [
                process
                for process in descendants(self.process.pid)
                if command in process.command and "einsearch.leash" not in process.command
            ],
            what=f"a process {command}",
        )

    def child(self, command: str) -> Process:
        """The first of these."""
        return self.children(command)[0]

    def dashboard(self, path: str) -> list[dict[str, Any]]:
        """The rows that Ray's dashboard answers over REST."""
        token = (self.home / "ray-token").read_text()
        answer = httpx2.get(
            f"{self.dashboard_url}{path}", headers={"Authorization": f"Bearer {token}"}, timeout=30
        ).raise_for_status()
        rows: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
        return rows

    def stop(self, number: int = signal.SIGINT) -> int:
        """Stop it as Ctrl-C does; its exit status."""
        self.client.close()
        self.process.send_signal(number)
        return self.process.wait(60)

    def _printed(self) -> str:
        return self.output.read_text()

    def _address(self, label: str) -> str:
        found = re.findall(rf"{label}\s+(\S+)", self._printed())
        return str(found[-1])


def small_search(name: str, *, trials: int, train_flops: float, concurrency: int = 2, **proxy: Any) -> dict[str, Any]:
    """What is sent to submit a search of small models, which take about as long as each other."""
    return {
        "name": name,
        "budget": {"max_trials": trials},
        "space": {"seeds": ["monarch", "kronecker"]},
        "proxy": asdict(replace(SMALL, train_flops=train_flops, **proxy)),
        "concurrency": concurrency,
    }


@contextmanager
def embedded_service(
    home: Path, environment: Mapping[str, str] | None = None, *, runners: int = 1, prefix: Sequence[str] = ()
) -> Iterator[EmbeddedService]:
    """A service that is stopped in the end, if the test has not done so; ``prefix``: a command that runs its command."""
    service = EmbeddedService(home, environment or {}, runners=runners, prefix=prefix)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()
        service.client.close()
