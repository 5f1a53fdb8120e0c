"""A Ray cluster of several nodes on this machine: a head without CPUs, and nodes that come and are killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.embedded_service import descendants
from tests.faults.site import kill
from tests.waiting import wait_for

RAY = str(Path(sys.executable).with_name("ray"))

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "of-this-test-alone",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    # By default a node has to be silent for a good part of a minute before it is taken to be gone.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "2",
}


class Nodes:
    """The cluster; ``environment`` is what a process needs to reach it, once it has a head."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self.environment: Mapping[str, str] = _ENVIRONMENT

    def start_head(self) -> None:
        """Start the head, which has no CPUs."""
        head = ["--head", "--port=0", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false"]
        process = self._start(*head, f"--temp-dir={self._folder}")
        wait_for(lambda: self._address() or process.poll() is not None, what="the head of the cluster")
        assert process.poll() is None, (self._folder / "nodes.log").read_text()
        self.environment = {**_ENVIRONMENT, "EINSEARCH_RAY_ADDRESS": self._address()}

    def add(self) -> "subprocess.Popen[bytes]":
        """A node with two CPUs."""
        return self._start(f"--address={self._address()}", "--num-cpus=2", "--num-gpus=0")

    def kill(self, node: "subprocess.Popen[bytes]") -> None:
        """End a node with everything on it at once, as a machine that loses its power."""
        if node.poll() is not None:
            return
        doomed = [node.pid, *(process.pid for process in descendants(node.pid))]
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)  # nobody sees another one die and tells of it
        for pid in doomed:
            kill(pid)
        node.wait()

    def close(self) -> None:
        """End what is left."""
        for node in reversed(self._started):
            self.kill(node)

    def _start(self, *options: str) -> "subprocess.Popen[bytes]":
        command = [RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000", *options]
        with (self._folder / "nodes.log").open("ab") as log:
            node = subprocess.Popen(
                command, env={**os.environ, **_ENVIRONMENT}, stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(node)
        return node

    def _address(self) -> str:
        try:
            return (self._folder / "ray_current_cluster").read_text().strip()
        except OSError:
            return ""


@contextmanager
def ray_nodes() -> Iterator[Nodes]:
    """A cluster that is gone in the end."""
    with ExitStack() as stack:
        # Not below pytest's own folders: Ray makes sockets there, whose paths must be short.
        folder = Path(tempfile.mkdtemp(prefix="ray-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        nodes = Nodes(folder)
        stack.callback(nodes.close)
        nodes.start_head()
        yield nodes
