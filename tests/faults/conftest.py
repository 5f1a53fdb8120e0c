"""One service per kind of database for all faults, because to start one takes longer than most faults do."""

from collections.abc import Iterator

import pytest

from tests.databases import KINDS, MissingPrograms
from tests.faults.site import Site, new_site


@pytest.fixture(scope="package", params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service with two runners on SQLite, and another one on a Postgres of its own."""
    try:
        with new_site(request.param, tmp_path_factory.mktemp("faults") / "home") as running:
            yield running
    except MissingPrograms as missing:
        pytest.skip(str(missing))
