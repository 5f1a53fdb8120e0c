"""The learning rate of each trial, plans, and what a learning curve counts."""

from dataclasses import replace

from alembic import command
from sqlalchemy import select, text

from einlayers.theta import NAMED
from search.plan import Plan, Run
from search.sampling import Random
from search.spec import Budget, SearchSpec
from search.trial import Outcome
from service import migrate
from service.models import Attempt, Measurement, Search, Trial
from tests.rows import SPEC, TINY, Rows, point

PLAN = Plan(runs=(Run(theta=NAMED["btt"], base_lr=0.25), Run(theta=NAMED["dense"])), seed=7)


def there_and_back(rows: Rows, url: str) -> None:
    rows.database.close()
    command.downgrade(migrate.configuration(url), "0002")
    migrate.upgrade(url)


def specs(rows: Rows) -> dict[str, SearchSpec]:
    with rows.database.read() as session:
        return {search.id: search.spec for search in session.scalars(select(Search))}


class TestUpgrade:
    def test_gives_old_trials_the_rate_of_their_search(self, rows: Rows, database_url: str) -> None:
        ids = [rows.search(replace(SPEC, proxy=replace(TINY, base_lr=rate))) for rate in (0.125, 0.5)]
        for search_id in ids:
            rows.completed(search_id, NAMED["btt"], 1.0)
        there_and_back(rows, database_url)
        with rows.database.read() as session:
            rates = {trial.search_id: trial.base_lr for trial in session.scalars(select(Trial))}
        assert rates == dict(zip(ids, (0.125, 0.5), strict=True))

    def test_keeps_what_learning_curves_count(self, rows: Rows, database_url: str) -> None:
        search_id = rows.search()
        rows.completed(search_id, NAMED["btt"], 1.0)
        attempt_id = rows.attempt(rows.trial(search_id, NAMED["dense"]))
        late = Outcome.completed(loss=1.0, curve=(point(3),))
        with rows.database.write() as session:
            session.get_one(Attempt, attempt_id).late = late
        there_and_back(rows, database_url)
        with rows.database.read() as session:
            assert session.get_one(Attempt, attempt_id).late == late
            assert session.scalars(select(Measurement.examples)).all() == [point(1).examples]


class TestDowngrade:
    def test_makes_a_plan_a_search_that_has_all_of_its_trials(self, rows: Rows, database_url: str) -> None:
        begun, waiting = (rows.search(replace(SPEC, sampler=PLAN)) for _ in range(2))
        other = rows.search()
        rows.completed(begun, NAMED["btt"], 1.0)
        rows.completed(begun, NAMED["dense"], 1.0)
        there_and_back(rows, database_url)
        found = specs(rows)
        assert found[other] == SPEC
        assert found[begun] == replace(SPEC, sampler=Random(seed=7), budget=Budget(max_trials=2))
        assert found[waiting] == replace(SPEC, sampler=Random(seed=7), budget=Budget(max_trials=1))

    def test_leaves_no_trace_of_the_rate(self, rows: Rows, database_url: str) -> None:
        command.downgrade(migrate.configuration(database_url), "0002")
        with rows.database.read() as session:
            names = session.execute(text("select * from trials")).keys()
        assert "base_lr" not in names
        assert "train_flops" in names
