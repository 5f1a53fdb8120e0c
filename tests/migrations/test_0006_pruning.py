"""Early stopping, and teachers of several outputs, which the code before does not know."""

import json
from dataclasses import replace

from alembic import command
from sqlalchemy import select, text

from search.proxies.regression import Regression
from search.stopping import Convergence, SuccessiveHalving
from service import migrate
from service.models import Search
from tests.rows import SPEC, Rows


class TestDowngrade:
    def test_forgets_pruners_and_outputs_and_nothing_else(self, rows: Rows, database_url: str) -> None:
        regression = Regression(dense_width=8, train_flops=1e6, base_lr=1e-3)
        new = replace(
            SPEC, proxy=replace(regression, outputs=8), pruner=SuccessiveHalving(), convergence=Convergence(patience=9)
        )
        ids = [rows.search(), rows.search(new)]
        rows.database.close()
        command.downgrade(migrate.configuration(database_url), "0005")
        with rows.database.read() as session:
            written = [spec for spec in session.scalars(text("select spec from searches"))]
            assert "expected_loss" not in set(session.execute(text("select * from trials")).keys())
        for spec in written:
            read = json.loads(spec) if isinstance(spec, str) else spec
            assert read["pruner"] == {"kind": "none"}
            assert "convergence" not in read
            assert "outputs" not in read["proxy"]
        migrate.upgrade(database_url)
        with rows.database.read() as session:
            found = {search.id: search.spec for search in session.scalars(select(Search))}
        assert found == {ids[0]: SPEC, ids[1]: replace(SPEC, proxy=regression)}
