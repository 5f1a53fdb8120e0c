"""The embedded service: API, runners and a local Ray as processes of one command, which looks after them.

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
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from einsearch.children import CannotStart, Child, end
from einsearch.client import Client

_READY_WITHIN = 90.0
_RAY_WITHIN = 120.0
_TEND_EVERY = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where the service keeps its things and where it listens; port 0 takes a free one, None slots one per CPU."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    slots: int | None = None
    gpus: int | None = None
    runners: int = 1


class Embedded:
    """The running service; a context manager that starts it and stops it.

    Raises:
        CannotStart: on entry, where the home is in use, the port is taken, or a process does not come up.
    """

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._home = options.home.absolute()
        self._api: Child | None = None
        self._ray: Child | None = None
        self._runners: list[Child] = []
        self._dashboard_lock: int | None = None
        self._closing = threading.Event()
        self._tender = threading.Thread(target=self._tend, daemon=True, name="tender")
        self.url = ""
        self.dashboard_url = ""
        self.database = ""
        self.token_file = options.home / "ray-token"

    def __enter__(self) -> Self:
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_home()
        except OSError as error:
            raise CannotStart(f"cannot use {self._options.home} as a home: {error.strerror}") from error
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
        dashboard_port = self._take_dashboard_port()
        self.dashboard_url = f"http://127.0.0.1:{dashboard_port}"
        self._environment = self._make_environment(port)
        self.database = self._migrate()
        self._lock.truncate(0)
        self._lock.write(json.dumps({"url": self.url, "pid": os.getpid()}))
        self._lock.flush()
        # The API first: it refuses to listen where nobody could use it, or anybody.
        self._api = self._launch("api", [sys.executable, "-m", "api"])
        try:
            self._api.await_up(self._is_ready, _READY_WITHIN)
        except CannotStart as error:
            home = self._options.home
            raise CannotStart(
                f"{error}\nThe home of this service is {home}; other commands take it as --home"
            ) from error
        self._ray = self._launch("ray", self._ray_command(dashboard_port))
        self._ray.await_up(lambda: bool(self._ray_address()), _RAY_WITHIN)
        self._environment["EINSEARCH_RAY_ADDRESS"] = self._ray_address()
        for number in range(1, self._options.runners + 1):
            name = "runner" if number == 1 else f"runner-{number}"
            self._runners.append(self._launch(name, [sys.executable, "-m", "service.runner"]))
        # Who submits before there is a runner is told that there is none.
        self._runners[0].await_up(self._has_runner, _READY_WITHIN)

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

    def _take_dashboard_port(self) -> int:
        """Ray's usual port, unless another service of this user has it, or has chosen it: Ray binds it seconds later."""
        path = Path(tempfile.gettempdir()) / f"einsearch-dashboard-{os.getuid()}.lock"
        try:
            self._dashboard_lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._dashboard_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another service has it; or somebody has put something else in its place
            return _free_port("127.0.0.1")
        return _free_port("127.0.0.1", preferred=8265)

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
            # The logs of slots are read where they are; no driver wants a copy.
            "--include-log-monitor=false",
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

    def _has_runner(self) -> bool:
        with Client(self.url, timeout=2) as client:
            health = client.health()
        return health is not None and health["checks"].get("runner") == "ok"

    def _launch(self, name: str, command: list[str]) -> Child:
        logs = self._home / "logs"
        logs.mkdir(exist_ok=True)
        child = Child(name=name, command=command, log=logs / f"{name}.log")
        child.spawn(self._environment)
        return child

    @property
    def _children(self) -> list[Child]:
        return [child for child in (self._api, self._ray, *self._runners) if child is not None]

    def _tend(self) -> None:
        """Start again what has died, after a pause that grows with every death."""
        while not self._closing.wait(_TEND_EVERY):
            for child in self._children:
                if (status := child.status) is None:
                    continue
                if child.not_before is None:
                    child.schedule()
                    self._say(f"{child.name} ended ({_how(status)}); starting it again, see {child.log}")
                elif time.monotonic() >= child.not_before:
                    self._restart(child)

    def _restart(self, child: Child) -> None:
        child.kill_rest()
        if child is self._ray:
            self._restart_ray(child)
        else:
            child.spawn(self._environment)

    def _restart_ray(self, ray: Child) -> None:
        self._renew_ray_dir()
        ray.spawn(self._environment)
        try:
            ray.await_up(lambda: bool(self._ray_address()), _RAY_WITHIN)
        except CannotStart as error:
            self._say(str(error))
            ray.kill()
            return
        self._environment["EINSEARCH_RAY_ADDRESS"] = self._ray_address()
        # The runners would notice within a minute that their cluster is gone; the next ones find the new one at once.
        for runner in self._runners:
            runner.kill()

    def _renew_ray_dir(self) -> None:
        shutil.rmtree(self._ray_dir, ignore_errors=True)
        self._ray_dir.mkdir(mode=0o700)

    def _stop(self) -> None:
        self._closing.set()
        if self._tender.is_alive():
            self._tender.join(_RAY_WITHIN)
        # The runners first: they must not see their slots die and take them for lost.
        end(self._runners)
        end(child for child in (self._ray, self._api) if child is not None)
        if hasattr(self, "_ray_dir"):
            shutil.rmtree(self._ray_dir, ignore_errors=True)
        if self._dashboard_lock is not None:
            os.close(self._dashboard_lock)
        self._lock.truncate(0)
        self._lock.close()


def _free_port(host: str, *, preferred: int = 0) -> int:
    for port in (preferred, 0):
        with socket.socket(_family(host)) as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                reason = error.strerror
                continue
            return int(probe.getsockname()[1])
    raise CannotStart(f"cannot listen on {host}: {reason}")


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
