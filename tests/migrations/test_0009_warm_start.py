"""Searches that start from earlier ones, which the code before does not know."""

import json
from dataclasses import replace

from alembic import command
from sqlalchemy import inspect, select, text

from einlayers.theta import NAMED
from service import migrate, trials
from service.models import Search, Trial
from tests.rows import SPEC, TINY, Rows


class TestDowngrade:
    def test_makes_trained_trials_of_those_whose_results_were_taken_over(self, rows: Rows, database_url: str) -> None:
        source_id = rows.search()
        rows.completed(source_id, NAMED["btt"], 1.0)
        warm_id = rows.search(replace(SPEC, warm_start=(source_id,)))
        with rows.database.write() as session:
            trials.enqueue(session, warm_id, NAMED["btt"])
        rows.completed(warm_id, NAMED["dense"], 2.0)
        rows.database.close()
        command.downgrade(migrate.configuration(database_url), "0008")
        with rows.database.read() as session:
            written = list(session.scalars(text("select spec from searches")))
            assert not {"reused_from"} & set(session.execute(text("select * from trials")).keys())
            assert not {"num_reused"} & set(session.execute(text("select * from searches")).keys())
        assert "warm_starts" not in inspect(rows.database.engine).get_table_names()
        for spec in written:
            assert "warm_start" not in (json.loads(spec) if isinstance(spec, str) else spec)
        migrate.upgrade(database_url)
        with rows.database.read() as session:
            found = {search.id: search for search in session.scalars(select(Search))}
            flops = {trial.id: trial.train_flops for trial in session.scalars(select(Trial))}
        assert {search_id: search.spec for search_id, search in found.items()} == {source_id: SPEC, warm_id: SPEC}
        assert set(flops.values()) == {TINY.train_flops}
        assert {search_id: search.train_flops for search_id, search in found.items()} == {
            source_id: TINY.train_flops,
            warm_id: 2 * TINY.train_flops,
        }
        assert [search.num_reused for search in found.values()] == [0, 0]
