"""What a training step costs, which the code before does not know."""

import json
from dataclasses import replace

from alembic import command
from sqlalchemy import select, text

from search.spec import Objective
from service import migrate
from service.models import Search
from tests.rows import SPEC, Rows

LOSS, PARAMS = Objective(), Objective(metric="params")
MEASURED = Objective(metric="latency"), Objective(metric="peak_memory")


class TestDowngrade:
    def test_forgets_what_is_measured_and_nothing_else(self, rows: Rows, database_url: str) -> None:
        specs = [
            SPEC,
            replace(SPEC, objectives=(LOSS, *MEASURED)),
            replace(SPEC, objectives=(LOSS, MEASURED[1], PARAMS)),
        ]
        ids = [rows.search(spec) for spec in specs]
        rows.database.close()
        command.downgrade(migrate.configuration(database_url), "0006")
        with rows.database.read() as session:
            written = [spec for spec in session.scalars(text("select spec from searches"))]
            assert not {"latency", "peak_memory"} & set(session.execute(text("select * from trials")).keys())
        for spec in written:
            read = json.loads(spec) if isinstance(spec, str) else spec
            assert {objective["metric"] for objective in read["objectives"]} <= {"loss", "params"}
        migrate.upgrade(database_url)
        with rows.database.read() as session:
            found = {search.id: search.spec for search in session.scalars(select(Search))}
        assert found == {ids[0]: SPEC, ids[1]: SPEC, ids[2]: replace(SPEC, objectives=(LOSS, PARAMS))}
