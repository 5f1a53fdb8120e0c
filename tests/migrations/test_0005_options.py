"""Options of proxies, which the code before does not know."""

import json
from dataclasses import replace

from alembic import command
from sqlalchemy import select, text

from search.proxies.shapes import Mixture
from service import migrate
from service.models import Search
from tests.rows import SPEC, TINY, Rows

OPTIONS = ("base_depth", "data_seed", "head_aligned_rank", "mixture")


class TestDowngrade:
    def test_forgets_options_and_nothing_else(self, rows: Rows, database_url: str) -> None:
        optional = replace(TINY, mixture=Mixture(), base_depth=2, data_seed=1, head_aligned_rank=1)
        ids = [rows.search(), rows.search(replace(SPEC, proxy=optional))]
        rows.database.close()
        command.downgrade(migrate.configuration(database_url), "0004")
        with rows.database.read() as session:
            written = [spec for spec in session.scalars(text("select spec from searches"))]
        for spec in written:
            proxy = (json.loads(spec) if isinstance(spec, str) else spec)["proxy"]
            assert not proxy.keys() & set(OPTIONS)
        migrate.upgrade(database_url)
        with rows.database.read() as session:
            found = {search.id: search.spec for search in session.scalars(select(Search))}
        assert found == dict.fromkeys(ids, SPEC)
