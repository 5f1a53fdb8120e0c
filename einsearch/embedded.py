"""The embedded service: API, runner and a local Ray as processes of one command, which looks after them.

The processes keep everything that matters in the database, so each can be killed at any time: what is dead is started
again. They end when this process ends, in whatever way it does, because it holds the pipe that each of them listens to.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from einsearch.client import Client

_READY_WITHIN = 90.0
_RAY_WITHIN = 60.0
_STOP_WITHIN = 15.0
_TEND_EVERY = 0.3
_LONGEST_PAUSE = 10.0


class CannotStart(Exception):
    """The service cannot be started; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where the service keeps its things and where it listens; port 0 takes a free one, None slots one per CPU."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    slots: int | None = None
    gpus: int | None = None


@dataclass(slots=True)
class _Child:
    """A process that we look after: how it is started, its log, how often it has died."""

    name: str
    command: list[str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    deaths: int = 0
    not_before: float = field(default=0.0)


class Embedded:
    """The running service; a context manager that starts it and stops it.

    Raises:
        CannotStart: on entry, where the home is in use, the port is taken, or a process does not come up.
    """

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._home = options.home.absolute()
        self._children: list[_Child] = []
        self._closing = threading.Event()
        self._tender = threading.Thread(target=self._tend, daemon=True, name="tender")
        self.url = ""
        self.dashboard_url = ""
        self.database = ""
        self.token_file = options.home / "ray-token"

    def __enter__(self) -> Self:
        self._home.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_home()
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        self._tender.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        # Short, because Ray puts sockets below it, whose paths the system limits to about 100 characters.
        self._ray_dir = Path(tempfile.mkdtemp(prefix="einsearch-"))
        port = self._options.port or _free_port(self._options.host)
        _check_free(self._options.host, port)
        self.url = f"http://{_browsable(self._options.host)}:{port}"
        dashboard_port = _free_port("127.0.0.1", preferred=8265)
        self.dashboard_url = f"http://127.0.0.1:{dashboard_port}"
        self._environment = self._make_environment(port)
        self.database = self._migrate()
        self._lock.truncate(0)
        self._lock.write(json.dumps({"url": self.url, "pid": os.getpid()}))
        self._lock.flush()
        api = self._launch("api", [sys.executable, "-m", "api"])
        self._ray = self._launch("ray", self._ray_command(dashboard_port))
        self._await(api, lambda: self._is_ready(), _READY_WITHIN)
        self._await(self._ray, lambda: bool(self._ray_address()), _RAY_WITHIN)
        self._environment["EINSEARCH_RAY_ADDRESS"] = self._ray_address()
        self._runner = self._launch("runner", [sys.executable, "-m", "service.runner"])

    def _take_home(self) -> IO[str]:
        lock = (self._home / "up.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read()
            url = json.loads(holder).get("url", "") if holder else ""
            lock.close()
            raise CannotStart(
                f"einsearch runs already with {self._options.home}{f', at {url}' if url else ''}. "
                "Use it, stop it with Ctrl-C where it runs, or start another with its own --home and --port."
            ) from None
        return lock

    def _make_environment(self, port: int) -> dict[str, str]:
        environment = {
            **os.environ,
            "EINSEARCH_HOME": str(self._home),
            "EINSEARCH_HOST": self._options.host,
            "EINSEARCH_PORT": str(port),
            "EINSEARCH_STOP_AT_END_OF_INPUT": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token(),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
            "PYTHONUNBUFFERED": "1",
        }
        # One thread per process: a slot is one core's worth of work.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment.setdefault(name, "1")
        return environment

    def _token(self) -> str:
        path = self._home / "ray-token"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(32))
        return path.read_text().strip()

    def _migrate(self) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "service.migrate", "upgrade"],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotStart(done.stderr.strip() or "the database could not be prepared")
        return done.stdout.strip().splitlines()[-1]

    def _ray_command(self, dashboard_port: int) -> list[str]:
        slots = self._options.slots or os.cpu_count() or 1
        gpus = [] if self._options.gpus is None else [f"--num-gpus={self._options.gpus}"]
        return [
            *[sys.executable, "-m", "einsearch.leash", str(Path(sys.executable).with_name("ray")), "start"],
            *["--head", "--block", "--port=0", f"--num-cpus={slots}", *gpus, "--disable-usage-stats"],
            *["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"],
            # Fixed by default, so that a second Ray on this machine would stumble over the first.
            *[f"--dashboard-agent-listen-port={_free_port('127.0.0.1')}"],
            *[f"--ray-client-server-port={_free_port('127.0.0.1')}"],
            *["--object-store-memory=100000000", f"--temp-dir={self._ray_dir}"],
        ]

    def _ray_address(self) -> str:
        try:
            return (self._ray_dir / "ray_current_cluster").read_text().strip()
        except OSError:
            return ""

    def _is_ready(self) -> bool:
        with Client(self.url, timeout=2) as client:
            return client.is_ready()

    def _launch(self, name: str, command: list[str]) -> _Child:
        logs = self._home / "logs"
        logs.mkdir(exist_ok=True)
        child = _Child(name=name, command=command, log=logs / f"{name}.log")
        self._children.append(child)
        self._spawn(child)
        return child

    def _spawn(self, child: _Child) -> None:
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(
                child.command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we tell the others in good order
            )

    def _await(self, child: _Child, is_up: Callable[[], bool], within: float) -> None:
        deadline = time.monotonic() + within
        while not is_up():
            assert child.process is not None
            if child.process.poll() is not None or time.monotonic() > deadline:
                raise CannotStart(f"{child.name} did not start; the end of {child.log} says:\n{_tail(child.log)}")
            time.sleep(0.1)

    def _tend(self) -> None:
        """Start again what has died, after a pause that grows with every death."""
        while not self._closing.wait(_TEND_EVERY):
            for child in self._children:
                assert child.process is not None
                if child.process.poll() is None:
                    continue
                if child.not_before == 0.0:
                    pause = min(_LONGEST_PAUSE, 0.2 * 2**child.deaths)
                    child.deaths += 1
                    child.not_before = time.monotonic() + pause
                    self._say(
                        f"{child.name} ended ({_how(child.process.returncode)}); starting it again, see {child.log}"
                    )
                elif time.monotonic() >= child.not_before:
                    child.not_before = 0.0
                    try:
                        self._restart(child)
                    except CannotStart as error:
                        self._say(str(error))

    def _restart(self, child: _Child) -> None:
        _kill_rest(child)
        if child is self._ray:
            self._renew_ray_dir()
        self._spawn(child)
        if child is self._ray:
            self._await(child, lambda: bool(self._ray_address()), _RAY_WITHIN)
            self._environment["EINSEARCH_RAY_ADDRESS"] = self._ray_address()
            # The runner would notice within a minute that its cluster is gone; the next one finds the new cluster at once.
            assert self._runner.process is not None
            self._runner.process.kill()

    def _renew_ray_dir(self) -> None:
        shutil.rmtree(self._ray_dir, ignore_errors=True)
        self._ray_dir.mkdir(mode=0o700)

    def _stop(self) -> None:
        self._closing.set()
        if self._tender.is_alive():
            self._tender.join(_RAY_WITHIN)
        # The runner first: it must not see its slots die and take them for lost.
        for child in reversed(self._children):
            _end(child)
        if hasattr(self, "_ray_dir"):
            shutil.rmtree(self._ray_dir, ignore_errors=True)
        self._lock.truncate(0)
        self._lock.close()


def _end(child: _Child) -> None:
    process = child.process
    if process is None:
        return
    process.terminate()
    try:
        process.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _kill_rest(child)
    if process.stdin:
        process.stdin.close()


def _kill_rest(child: _Child) -> None:
    """End what a dead child has left behind: it was the leader of a group of its own."""
    assert child.process is not None
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)


def _free_port(host: str, *, preferred: int = 0) -> int:
    for port in (preferred, 0):
        with socket.socket(_family(host)) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise CannotStart(f"there is no free port on {host}")


def _check_free(host: str, port: int) -> None:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(
                f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --port; 0 takes a free one."
            ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _browsable(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _how(status: int) -> str:
    return f"exit {status}" if status >= 0 else signal.Signals(-status).name


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
