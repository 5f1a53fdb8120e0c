"""The API as it is served: in a process of its own, on loopback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

_START_WITHIN = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """A running API: where, and in which process."""

    url: str
    pid: int
    log: Path

    @property
    def cpu_seconds(self) -> float:
        """How long its process has computed, on whatever core, since it began."""
        user, system = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_mib(self) -> float:
        """How much memory its process holds, in MiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"expected a process {self.pid} with memory, found one that has ended")


@contextmanager
def served(database_url: str, folder: Path) -> Iterator[Served]:
    """An API on a database, without limits on how often it may be asked."""
    port = _free_port()
    log = folder / f"api-{port}.log"
    settings = {
        "EINSEARCH_HOME": str(folder / "home"),
        "EINSEARCH_DATABASE_URL": database_url,
        "EINSEARCH_HOST": "127.0.0.1",
        "EINSEARCH_PORT": str(port),
        "EINSEARCH_REQUESTS_PER_MINUTE": str(10**9),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "api"],
            env={**os.environ, **settings},
            stdin=subprocess.PIPE,  # it ends with us, because we hold this
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    running = Served(url=f"http://127.0.0.1:{port}", pid=process.pid, log=log)
    try:
        _await(running, process)
        yield running
    finally:
        process.terminate()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _await(running: Served, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{running.url}/healthz").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise RuntimeError(f"the API does not answer; it said:\n{running.log.read_text()}")
