from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect
from sqlalchemy.exc import IntegrityError

from einlayers.theta import NAMED
from search.studies.calibration import Calibration
from service import migrate, trials
from service.database import Database
from service.models import ApiKey, Base, Delivery, IdempotencyKey, ParetoFront, Search, Study, StudyPart, Webhook
from tests.rows import SPEC, Rows, contents

REVISIONS = [script.revision for script in ScriptDirectory.from_config(migrate.configuration("")).walk_revisions()]
"""Newest first."""


def _schema(engine: Engine) -> dict[str, Any]:
    """Everything that the database itself knows of its tables."""
    inspector = inspect(engine)
    return {
        table: {
            "columns": [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table),
            "foreign keys": inspector.get_foreign_keys(table),
            "unique": sorted(inspector.get_unique_constraints(table), key=str),
            "indexes": sorted(map(_comparable, inspector.get_indexes(table)), key=str),
        }
        for table in inspector.get_table_names()
    }


def _comparable(index: Mapping[str, Any]) -> dict[str, Any]:
    """An index with its condition, if it has one, as text."""
    return {**index, "dialect_options": {name: str(value) for name, value in index.get("dialect_options", {}).items()}}


def _fill(rows: Rows) -> None:
    search_id = rows.search()
    rows.completed(search_id, NAMED["btt"], 1.0)
    rows.attempt(rows.trial(search_id, NAMED["monarch"]))
    warm_id = rows.search(replace(SPEC, warm_start=(search_id,)))
    with rows.database.write() as session:
        trials.enqueue(session, warm_id, NAMED["btt"])
    with rows.database.write() as session:
        time = session.get_one(Search, search_id).created_at
        session.add(ApiKey(id="key", hash="0" * 64, owner="a", scopes=["read"], created_at=time))
        session.add(
            IdempotencyKey(owner="a", key="once", fingerprint="0" * 64, status=201, answer={"id": "a"}, created_at=time)
        )
        session.add(ParetoFront(search_id=search_id, metrics="loss,params", seen=1, digests=["a"]))
        session.add(
            Webhook(id="hook", owner="a", url="http://a", secret="b", search_id=search_id, kinds=[], created_at=time)
        )
        study = {"kind": "calibration", "name": "a", "owner": "a", "spec": Calibration(name="a"), "task": "a"}
        session.add(Study(id="study", created_at=time, **study))
        session.flush()
        session.add(StudyPart(study_id="study", role="a", number=0, search_id=search_id, digest="a"))
        session.add(Delivery(webhook_id="hook", search_id=search_id, delivered=1, failures=0, not_before=time))


class TestMigrations:
    def test_are_one_line_without_branches(self) -> None:
        script = ScriptDirectory.from_config(migrate.configuration(""))
        assert len(script.get_heads()) == len(script.get_bases()) == 1

    def test_make_the_tables_of_the_models(self, database_url: str) -> None:
        migrate.check(database_url)

    def test_can_be_undone_with_rows_in_the_tables(self, rows: Rows, database_url: str) -> None:
        _fill(rows)
        assert all(contents(rows.database).values())
        command.downgrade(migrate.configuration(database_url), "base")
        assert inspect(rows.database.engine).get_table_names() == ["alembic_version"]

    def test_can_be_done_again_and_make_the_same(self, rows: Rows, database_url: str) -> None:
        before = _schema(rows.database.engine)
        _fill(rows)
        command.downgrade(migrate.configuration(database_url), "base")
        rows.database.close()
        migrate.upgrade(database_url)
        assert _schema(rows.database.engine) == before
        assert contents(rows.database) == {table: [] for table in Base.metadata.tables}
        _fill(rows)

    @pytest.mark.parametrize("revision", REVISIONS)
    def test_can_be_undone_one_by_one(self, revision: str, rows: Rows, database_url: str) -> None:
        _fill(rows)
        configuration = migrate.configuration(database_url)
        command.downgrade(configuration, revision)
        command.downgrade(configuration, "-1")
        rows.database.close()
        migrate.upgrade(database_url)
        migrate.check(database_url)

    def test_name_every_constraint(self, database: Database) -> None:
        for table, found in _schema(database.engine).items():
            if table != "alembic_version":
                named = [found["key"], *found["foreign keys"], *found["unique"], *found["indexes"]]
                assert all(constraint["name"] for constraint in named), table

    def test_keep_a_row_from_losing_what_it_hangs_on(self, rows: Rows) -> None:
        _fill(rows)
        before = contents(rows.database)
        for table in ("searches", "trials", "attempts", "webhooks"):
            with pytest.raises(IntegrityError), rows.database.write() as session:
                session.execute(Base.metadata.tables[table].delete())
        assert contents(rows.database) == before
