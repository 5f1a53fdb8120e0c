from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from service.clock import database_time, now
from service.database import Database
from service.models import Search
from tests.rows import Rows


class TestNow:
    def test_is_the_time_in_utc(self, database: Database) -> None:
        before = datetime.now(UTC) - timedelta(milliseconds=1)  # SQLite counts in milliseconds
        with database.read() as session:
            time = now(session)
        assert before <= time <= datetime.now(UTC)
        assert time.tzinfo is UTC

    def test_is_one_time_throughout_a_transaction_and_a_later_one_in_the_next(self, database: Database) -> None:
        with database.read() as session:
            first = now(session)
            assert now(session) == first
        with database.read() as session:
            assert now(session) >= first

    def test_compares_with_times_that_were_written(self, rows: Rows) -> None:
        search_id = rows.search()
        with rows.database.read() as session:
            earlier = select(Search.id).where(Search.created_at <= database_time())
            later = select(Search.id).where(Search.created_at > database_time())
            assert session.scalars(earlier).all() == [search_id]
            assert session.scalars(later).all() == []
