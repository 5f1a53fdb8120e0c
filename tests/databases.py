"""Databases for one test each: SQLite files, and databases in a Postgres of our own that lives as long as the test run.

The Postgres is a temporary directory with a Unix socket in it, without a port and without durability; only one that a test
has for itself, to kill it, is durable. It needs the server's programs (Debian and Ubuntu: the package ``postgresql``;
Homebrew: ``postgresql``) and no rights.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Protocol

import psycopg
from psycopg import sql

from service import migrate
from service.models import Base
from tests.waiting import wait_for

KINDS = ("sqlite", "postgres")

_USER = "einsearch"
_PATIENT = "options=-c%20idle_in_transaction_session_timeout%3D5min"
"""Of the URL of a Postgres: a machine that sleeps in the middle of a test's transaction ends no test."""

_PROGRAMS = ("initdb", "pg_ctl", "postgres")


class MissingPrograms(Exception):
    """The programs of a Postgres server are not on this machine; the message says what to install."""


class Server(Protocol):
    """Makes databases that are gone when their block ends."""

    def empty(self) -> AbstractContextManager[str]:
        """The URL of a database without tables."""
        ...

    def migrated(self) -> AbstractContextManager[str]:
        """The URL of a database without rows, at the newest revision."""
        ...


class Databases:
    """The servers of one test run, each started when it is first wanted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._servers: dict[str, Server] = {}
        self._starters: Mapping[str, Callable[[], Server]] = {
            "sqlite": lambda: SQLite(self._folder),
            "postgres": lambda: self._stack.enter_context(_postgres()),
        }

    def of(self, kind: str) -> Server:
        """The server of a kind.

        Raises:
            MissingPrograms: it is Postgres, and Postgres is not installed.
        """
        if kind not in self._servers:
            self._servers[kind] = self._starters[kind]()
        return self._servers[kind]

    def close(self) -> None:
        """Stop the servers."""
        self._stack.close()


class SQLite:
    """Files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count()

    @contextmanager
    def empty(self) -> Iterator[str]:
        """See ``Server.empty``."""
        with self._file() as path:
            yield _sqlite_url(path)

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """See ``Server.migrated``."""
        with self._file() as path:
            shutil.copyfile(self._template, path)
            yield _sqlite_url(path)

    @cached_property
    def _template(self) -> Path:
        path = self._folder / "migrated.db"
        migrate.upgrade(_sqlite_url(path))
        return path

    @contextmanager
    def _file(self) -> Iterator[Path]:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        yield folder / "test.db"
        shutil.rmtree(folder)


class Postgres:
    """Databases of a running server whose socket is in ``folder``.

    Making one takes a good part of a second on a busy machine, so those with the newest schema are emptied and used again.
    """

    def __init__(self, folder: Path, connection: psycopg.Connection) -> None:
        self._folder = folder
        self._connection = connection
        self._numbers = count()
        self._free: list[str] = []

    @contextmanager
    def empty(self) -> Iterator[str]:
        """See ``Server.empty``."""
        name = self._create("template1")
        yield self._url(name)
        self._drop(name)

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """See ``Server.migrated``."""
        name = self._free.pop() if self._free else self._create(self._template)
        yield self._url(name)
        if self._is_as_it_came(name):
            self._free.append(name)
        else:
            self._drop(name)

    @cached_property
    def _template(self) -> str:
        name = self._create("template1")
        migrate.upgrade(self._url(name))
        return name

    @cached_property
    def _revisions(self) -> list[tuple[object, ...]]:
        with self._connect(self._template) as connection:
            return _revisions(connection)

    def _is_as_it_came(self, name: str) -> bool:
        """Close what is still open of a database, and delete its rows, if it has the newest schema."""
        with self._connect(name) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            if _revisions(connection) != self._revisions:
                return False
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))
            return True

    def _create(self, template: str) -> str:
        name = f"test{next(self._numbers)}"
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._connection.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def _drop(self, name: str) -> None:
        self._connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _connect(self, name: str) -> psycopg.Connection:
        return psycopg.connect(host=str(self._folder), user=_USER, dbname=name, autocommit=True)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://{_USER}@/{name}?host={self._folder}&{_PATIENT}"


def _revisions(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT version_num FROM alembic_version").fetchall()


class OwnPostgres:
    """A Postgres of a test's own, as durable as one that is in use: it can be killed, and started again on what it wrote."""

    def __init__(self, cluster: "_Cluster") -> None:
        self._cluster = cluster
        self.url = f"postgresql+psycopg://{_USER}@/postgres?host={cluster.folder}"

    def kill(self) -> None:
        """End the server at once, without a chance to clean up; its processes follow when they see that it is gone."""
        os.kill(int((self._cluster.folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def start(self) -> None:
        """Start it again, as soon as the last process of the killed one is gone."""
        wait_for(self._cluster.try_to_start, what="Postgres to start again")


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """A server with one database, without tables.

    Raises:
        MissingPrograms: Postgres is not installed.
    """
    with _running(["fsync=on", "synchronous_commit=on"]) as cluster:
        yield OwnPostgres(cluster)


@contextmanager
def _postgres() -> Iterator[Postgres]:
    """A server that is fast and loses everything with the machine."""
    with (
        _running(["fsync=off", "synchronous_commit=off", "full_page_writes=off"]) as cluster,
        # Databases are not made in transactions.
        psycopg.connect(host=str(cluster.folder), user=_USER, dbname="postgres", autocommit=True) as connection,
    ):
        yield Postgres(cluster.folder, connection)


@contextmanager
def _running(options: Sequence[str]) -> Iterator["_Cluster"]:
    """A server in a temporary directory, which it leaves as it came: not at all."""
    programs = _find_programs()
    prefix = _without_root()
    # Not below pytest's own directory: that one is closed to others, and too long a path for a socket.
    folder = Path(tempfile.mkdtemp(prefix="einsearch-pg-"))
    try:
        if prefix:
            shutil.chown(folder, "nobody")
        cluster = _Cluster(folder, [*prefix, "env", f"HOME={folder}"], programs, options)
        cluster.call(
            "initdb", "-U", _USER, "--auth=trust", "--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C"
        )
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.call("pg_ctl", "-m", "immediate", "-s", "stop")
    finally:
        shutil.rmtree(folder)


class _Cluster:
    """The directory of a server, and the programs that work on it."""

    def __init__(
        self, folder: Path, prefix: Sequence[str], programs: Mapping[str, str], options: Sequence[str]
    ) -> None:
        self.folder = folder
        self._prefix = prefix
        self._programs = programs
        self._settings = " ".join(f"-c {option}" for option in ["listen_addresses=''", *options])

    def call(self, program: str, *arguments: str) -> None:
        """Run a program to its end.

        Raises:
            RuntimeError: it failed; the message has what it said.
        """
        command = [*self._prefix, self._programs[program], "-D", str(self.folder / "data"), *arguments]
        # Output to a file: a server keeps a pipe open for as long as it runs, and the reader waits for its end.
        with (self.folder / "output").open("w+") as output:
            if subprocess.run(command, cwd=self.folder, stdout=output, stderr=output, check=False).returncode:
                output.seek(0)
                raise RuntimeError(f"{program} {' '.join(arguments)}:\n{output.read()}")

    def start(self) -> None:
        """Start the server, and return when it serves."""
        log, options = str(self.folder / "log"), f"{self._settings} -k {self.folder}"
        self.call("pg_ctl", "-w", "-s", "-l", log, "-o", options, "start")

    def try_to_start(self) -> bool:
        """The same after a kill, when the memory of the killed one may still be in use; whether it serves."""
        try:
            self.start()
        except RuntimeError:
            return False
        return True


def _find_programs() -> dict[str, str]:
    # Debian keeps them out of PATH, one folder per version.
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: (len(str(folder)), folder))
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, reversed(folders))])
    found = {program: shutil.which(program, path=path) for program in _PROGRAMS}
    missing = [program for program, where in found.items() if where is None]
    if missing:
        raise MissingPrograms(f"Postgres is not installed: no {', '.join(missing)}; install the package postgresql")
    return {program: where for program, where in found.items() if where is not None}


def _without_root() -> list[str]:
    """The words before a command that let it run as nobody: Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise MissingPrograms("Postgres does not run as root: run the tests as another user, or install util-linux")
    return ["setpriv", "--reuid=nobody", "--clear-groups"]


def _sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"
