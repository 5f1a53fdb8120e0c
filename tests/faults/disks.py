"""Disks that can be full for one service and nobody else."""

import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from tests.embedded_service import EmbeddedService, embedded_service
from tests.faults.site import ENVIRONMENT

FILE = "einsearch.db"

_SIZE = "16m"
"""More than SQLite's log grows to before it is written back."""


class Disk(Protocol):
    """The disk with the database of a service."""

    def fill(self) -> None:
        """Leave no room on it."""
        ...

    def free(self) -> None:
        """Make room again."""
        ...

    def copy(self, to: Path) -> None:
        """Copy the database, as it is now, to where everybody sees it."""
        ...


class Tmpfs:
    """A file system that only a service sees, in a namespace of its own; it has the database in ``folder``."""

    def __init__(self, service: EmbeddedService, folder: Path) -> None:
        self._service = service
        self._folder = folder
        self._filler = Path(f"/proc/{service.process.pid}/root{folder}/filler")

    def fill(self) -> None:
        """See ``Disk.fill``."""
        with self._filler.open("wb", buffering=0) as filler:
            for size in (1 << 16, 1):
                with suppress(OSError):
                    while filler.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        """See ``Disk.free``."""
        self._filler.unlink()

    def copy(self, to: Path) -> None:
        """See ``Disk.copy``; SQLite follows the links in /proc, so that one has to go in to read the file."""
        inside = ["nsenter", f"--target={self._service.process.pid}", "--user", "--mount"]
        script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))"
        subprocess.run([*inside, sys.executable, "-c", script, self._folder / FILE, to], check=True)


class Limit:
    """A limit on the size of files, for where the kernel grants no namespaces: those of the database grow no more."""

    def __init__(self, service: EmbeddedService, folder: Path) -> None:
        self._service = service
        self._folder = folder

    def fill(self) -> None:
        """See ``Disk.fill``."""
        self._limit((self._folder / f"{FILE}-wal").stat().st_size)

    def free(self) -> None:
        """See ``Disk.free``."""
        self._limit(resource.RLIM_INFINITY)

    def copy(self, to: Path) -> None:
        """See ``Disk.copy``."""
        with closing(sqlite3.connect(self._folder / FILE)) as own, closing(sqlite3.connect(to)) as copied:
            own.backup(copied)

    def _limit(self, size: int) -> None:
        for name in ("-m api", "service.runner"):
            pid = self._service.child(name).pid
            _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))


def can_mount() -> bool:
    """Whether the kernel grants this user a file system in a namespace."""
    try:
        return (
            subprocess.run([*_mounting(tempfile.gettempdir()), "true"], capture_output=True, check=False).returncode
            == 0
        )
    except FileNotFoundError:
        return False


@contextmanager
def service_on_a_disk(home: Path, *, mounted: bool) -> Iterator[tuple[EmbeddedService, Disk]]:
    """A service with one runner, whose SQLite file is on a disk that can be filled: ``mounted``, or else a limit."""
    folder = home.parent / "disk"
    folder.mkdir()
    environment = {**ENVIRONMENT, "EINSEARCH_DATABASE_URL": f"sqlite:///{folder / FILE}"}
    with embedded_service(home, environment, prefix=_mounting(str(folder)) if mounted else ()) as service:
        yield service, (Tmpfs if mounted else Limit)(service, folder)


def _mounting(folder: str) -> Sequence[str]:
    """A command that runs the command after it where a small file system is at ``folder``."""
    script = f'mount -t tmpfs -o size={_SIZE} einsearch "$0" && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, folder]
