"""The one profile of hypothesis: the same examples on every machine, and no clock. And a fresh database for each test."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it ships no types

from service.database import Database
from service.settings import Settings
from tests.corpora import make_corpora
from tests.databases import KINDS, Databases, MissingPrograms, Server
from tests.rows import Rows

hypothesis_settings.register_profile("einsearch", derandomize=True, max_examples=80, deadline=None, print_blob=False)
hypothesis_settings.load_profile("einsearch")


SLOW = ("faults", "workers", "e2e")
"""Folders whose tests wait for processes, a few tests for minutes: they go first, so that no process ends alone with one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    # The sites after the other faults: a fixture of a package lives until its process leaves the package.
    items.sort(key=lambda item: (item.path.relative_to(root).parts[0] not in SLOW, _group(item.nodeid)))


class _ByGroup(LoadScopeScheduling):  # type: ignore[misc]  # untyped, as said above
    """Where several processes run the tests, each takes whole files, and all that shares a running service.

    The groups of xdist 3.8 itself come to nothing with pytest 9.2, whose items no longer take another id.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByGroup(config, log)


def _group(nodeid: str) -> str:
    """What runs in one process: a file, or the faults of one site."""
    file, _, test = nodeid.partition("::")
    site = next((kind for kind in KINDS if f"[{kind}" in test), None) if "/faults/" in file else None
    return f"{file.rpartition('/')[0]}/~{site}" if site else file


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """The settings of the shell that runs the tests are none of theirs."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("EINSEARCH_")]:
            environment.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_data_from_outside() -> Iterator[None]:
    """Neither this process nor those that it starts ask Hugging Face for anything, or tell it."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
            environment.setenv(name, "1")
        yield


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """The database servers of this test run."""
    servers = Databases(tmp_path_factory.mktemp("databases"))
    yield servers
    servers.close()


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest, databases: Databases) -> Server:
    """SQLite, then Postgres, if its programs are installed."""
    try:
        return databases.of(request.param)
    except MissingPrograms as missing:
        pytest.skip(str(missing))


@pytest.fixture
def database_url(server: Server) -> Iterator[str]:
    """The URL of a fresh database with the newest schema."""
    with server.migrated() as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh database with the newest schema."""
    with closing(Database(database_url)) as opened:
        yield opened


@pytest.fixture
def rows(database: Database) -> Rows:
    """Writes rows into the fresh database."""
    return Rows(database)


@pytest.fixture(scope="module")
def shared(server: Server) -> Iterator[Rows]:
    """A database for a whole module: for tests that do not mind, or do not change, what is in it."""
    with server.migrated() as url, closing(Database(url)) as opened:
        yield Rows(opened)


@pytest.fixture
def corpora_dir(tmp_path: Path) -> Path:
    """A directory that the operator allows, with one text in it: ``corpus.txt``."""
    return make_corpora(tmp_path / "corpora")


@pytest.fixture
def settings(database_url: str, tmp_path: Path, corpora_dir: Path) -> Settings:
    """The settings of a service on a fresh database."""
    return Settings(home=tmp_path / "home", database_url=database_url, corpora_dir=corpora_dir)
