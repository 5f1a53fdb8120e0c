"""Races, which the code before does not know, and the index of the structures that have replicates."""

import json
from dataclasses import replace

from alembic import command
from sqlalchemy import inspect, select, text

from einlayers.theta import NAMED
from search.racing import Racing
from service import migrate
from service.models import Result, Search
from tests.rows import SPEC, Rows


class TestDowngrade:
    def test_forgets_races_and_nothing_else(self, rows: Rows, database_url: str) -> None:
        ids = [rows.search(), rows.search(replace(SPEC, racing=Racing(max_replicates=5)))]
        for replicate in range(2):
            rows.completed(ids[1], NAMED["btt"], 1.0, replicate)
        rows.database.close()
        command.downgrade(migrate.configuration(database_url), "0007")
        with rows.database.read() as session:
            written = [spec for spec in session.scalars(text("select spec from searches"))]
        for spec in written:
            read = json.loads(spec) if isinstance(spec, str) else spec
            assert "racing" not in read
            assert read["replicates"] == 1
        assert "ix_results_with_replicates" not in _indexes(rows)
        rows.database.close()
        migrate.upgrade(database_url)
        assert "ix_results_with_replicates" in _indexes(rows)
        with rows.database.read() as session:
            assert {search.id: search.spec for search in session.scalars(select(Search))} == dict.fromkeys(ids, SPEC)
            assert session.scalars(select(Result.num_trials)).all() == [2]


def _indexes(rows: Rows) -> set[str | None]:
    return {index["name"] for index in inspect(rows.database.engine).get_indexes("results")}
