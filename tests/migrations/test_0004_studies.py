"""Studies, open learning rates, and settings of proxies that were constants of the code."""

from dataclasses import replace

from alembic import command
from sqlalchemy import select, text

from einlayers.theta import NAMED
from search.plan import Plan, Run
from search.proxies.identity import task_digest
from search.proxies.regression import Regression
from search.spec import SearchSpec
from service import migrate
from service.models import Search, Trial
from tests.rows import SPEC, TINY, Rows

PLAN = Plan(runs=(Run(theta=NAMED["btt"], lr_mult=2.0), Run(theta=NAMED["dense"], base_lr=0.5)))


def down(rows: Rows, url: str) -> None:
    rows.database.close()
    command.downgrade(migrate.configuration(url), "0003")


def there_and_back(rows: Rows, url: str) -> dict[str, SearchSpec]:
    """The specs of all searches after the way down and up again."""
    down(rows, url)
    migrate.upgrade(url)
    with rows.database.read() as session:
        return {search.id: search.spec for search in session.scalars(select(Search))}


class TestUpgrade:
    def test_keeps_searches_and_trials(self, rows: Rows, database_url: str) -> None:
        search_id = rows.search()
        rows.completed(search_id, NAMED["btt"], 1.0)
        assert there_and_back(rows, database_url) == {search_id: SPEC}
        with rows.database.read() as session:
            search, trial = session.scalars(select(Search)).one(), session.scalars(select(Trial)).one()
        assert (search.awaits_calibration, search.calibration_id, search.transfers) == (False, None, {})
        assert search.task == task_digest(TINY)
        assert (trial.loss, trial.cpu_seconds, trial.coordinates) == (1.0, None, None)


class TestDowngrade:
    def test_says_everything_in_words_that_the_old_code_knows(self, rows: Rows, database_url: str) -> None:
        rows.search()
        rows.search(replace(SPEC, sampler=PLAN))
        down(rows, database_url)
        with rows.database.read() as session:
            written = " ".join(str(spec) for spec in session.scalars(text("select spec from searches")))
        for word in ("base_width", "input_lr_mult", "warmup_steps", "lr_mult"):
            assert word not in written

    def test_gives_an_open_rate_the_value_that_it_had(self, rows: Rows, database_url: str) -> None:
        ids = [
            rows.search(replace(SPEC, proxy=replace(proxy, base_lr=None)))
            for proxy in (TINY, Regression(depth=2, train_flops=1e6))
        ]
        found = there_and_back(rows, database_url)
        assert [found[search_id].proxy.base_lr for search_id in ids] == [5e-3, 5e-3]

    def test_says_a_multiple_of_the_rate_as_a_rate(self, rows: Rows, database_url: str) -> None:
        search_id = rows.search(replace(SPEC, sampler=PLAN))
        sampler = there_and_back(rows, database_url)[search_id].sampler
        assert isinstance(sampler, Plan)
        assert [run.base_lr for run in sampler.runs] == [1e-2, 0.5]
