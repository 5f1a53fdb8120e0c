"""The application on a fresh database, or on one that a whole module shares."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from einlayers.theta import NAMED
from service.settings import Settings
from tests.api.local import LocalClient
from tests.corpora import make_corpora
from tests.rows import Rows


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of the application on a fresh database."""
    with LocalClient(create_app(settings)) as opened:
        yield opened


@pytest.fixture(scope="module")
def search_id(shared: Rows) -> str:
    """A search in the shared database, with a trial that completed."""
    identifier = shared.search()
    shared.completed(identifier, NAMED["btt"], 1.0)
    return identifier


@pytest.fixture(scope="module")
def shared_client(shared: Rows, search_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of the application on the shared database. Among the corpora is a link that leads out of them."""
    folder = tmp_path_factory.mktemp("api")
    corpora_dir = make_corpora(folder / "corpora")
    (folder / "secret.txt").write_text("secret " * 1000)
    (corpora_dir / "tabs.txt").write_text("\t\n" * 5000)
    (corpora_dir / "many").mkdir()
    (corpora_dir / "many" / "cifar5m_part0.npz").write_bytes(b"no archive")
    (corpora_dir / "way-out.txt").symlink_to(folder / "secret.txt")
    url = shared.database.engine.url.render_as_string(hide_password=False)
    settings = Settings(home=folder / "home", database_url=url, corpora_dir=corpora_dir)
    with LocalClient(create_app(settings)) as opened:
        yield opened
