import threading
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError, OperationalError

from einlayers.theta import NAMED
from search.states import SearchState
from service import repositories, searches
from service.database import Database
from service.models import Measurement
from tests.rows import SPEC, Rows, contents


class Unexpected(Exception):
    """Something that no use case expects."""


class TestWrite:
    def test_is_committed_when_the_block_ends(self, database: Database, database_url: str) -> None:
        with database.write() as session:
            search_id = searches.submit(session, SPEC, None).search.id
        other = Database(database_url)
        with other.read() as session:
            assert repositories.search_by_id(session, search_id).name == SPEC.name
        other.close()

    def test_is_rolled_back_when_the_block_raises(self, database: Database) -> None:
        with pytest.raises(Unexpected):
            self._submit_and_raise(database)
        assert contents(database)["searches"] == []

    @staticmethod
    def _submit_and_raise(database: Database) -> None:
        with database.write() as session:
            searches.submit(session, SPEC, None)
            raise Unexpected

    def test_is_not_seen_before_it_is_committed(self, database: Database) -> None:
        with database.write() as session:
            searches.submit(session, SPEC, None)
            assert contents(database)["searches"] == []

    def test_keeps_the_foreign_keys(self, database: Database) -> None:
        with pytest.raises(IntegrityError), database.write() as session:
            session.add(Measurement(attempt_id="0-0-1", step=1, examples=1, train_flops=1.0, loss=1.0))
        assert contents(database)["measurements"] == []

    def test_refuses_the_same_structure_twice_in_a_search(self, rows: Rows) -> None:
        search_id = rows.search()
        rows.trial(search_id, NAMED["btt"])
        before = contents(rows.database)
        with pytest.raises(IntegrityError):
            rows.trial(search_id, NAMED["btt"])
        assert contents(rows.database) == before
        rows.trial(search_id, NAMED["btt"], replicate=1)

    def test_of_many_threads_loses_none(self, rows: Rows) -> None:
        search_id = rows.search()

        def count() -> None:
            with rows.database.write() as session:
                search = repositories.search_by_id(session, search_id, lock=True)
                search.waiting_for = f"{int(search.waiting_for or 0) + 1}"

        threads = [threading.Thread(target=count) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with rows.database.read() as session:
            assert repositories.search_by_id(session, search_id).waiting_for == "12"


class TestRead:
    def test_changes_nothing(self, rows: Rows) -> None:
        search_id = rows.search(state=SearchState.QUEUED)
        before = contents(rows.database)
        with rows.database.read() as session:
            repositories.search_by_id(session, search_id).name = "changed"
        assert contents(rows.database) == before

    def test_sees_one_state_of_the_database(self, rows: Rows) -> None:
        search_id = rows.search()
        with rows.database.read() as session:
            assert not repositories.next_proposed(session, search_id, 1)
            rows.trial(search_id, NAMED["btt"])
            assert not repositories.next_proposed(session, search_id, 1)

    def test_does_not_keep_writers_waiting(self, rows: Rows) -> None:
        search_id = rows.search()
        with rows.database.read() as session:
            repositories.search_by_id(session, search_id)
            with rows.database.write() as writing:
                searches.pause(writing, search_id)
        with rows.database.read() as session:
            assert repositories.search_by_id(session, search_id).state is SearchState.PAUSED


class TestPing:
    def test_is_answered(self, database: Database) -> None:
        database.ping()

    def test_raises_where_there_is_no_database(self, database_url: str, tmp_path: Path) -> None:
        is_sqlite = database_url.startswith("sqlite")
        absent = Database(f"sqlite:///{tmp_path}" if is_sqlite else database_url.replace("?", "absent?"))
        with pytest.raises(OperationalError):
            absent.ping()
        absent.close()


class TestSQLite:
    def test_gets_the_folder_of_its_file(self, tmp_path: Path) -> None:
        database = Database(f"sqlite:///{tmp_path}/a/b/c.db")
        database.ping()
        database.close()
        assert (tmp_path / "a" / "b" / "c.db").exists()

    def test_writes_ahead_so_that_readers_and_a_writer_go_together(self, tmp_path: Path) -> None:
        database = Database(f"sqlite:///{tmp_path}/wal.db")
        with database.read() as session:
            assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        database.close()

    def test_takes_the_write_lock_when_a_write_begins(self, tmp_path: Path) -> None:
        first, second = (Database(f"sqlite:///{tmp_path}/lock.db") for _ in range(2))
        with first.write() as session, second.engine.connect() as connection:
            session.execute(text("SELECT 1"))  # no write yet
            connection.exec_driver_sql("ROLLBACK")
            connection.exec_driver_sql("PRAGMA busy_timeout=0")
            with pytest.raises(OperationalError, match="locked"):
                connection.exec_driver_sql("BEGIN IMMEDIATE")
        first.close()
        second.close()


class TestLimits:
    def test_are_ours_where_the_url_says_nothing_else(self, database: Database, database_url: str) -> None:
        if database.is_sqlite:
            pytest.skip("an SQLite is asked by nobody else, and has no sessions with limits")
        options = {"options": "-c idle_in_transaction_session_timeout=7s -c lock_timeout=3s"}
        other = Database(make_url(database_url).update_query_dict(options).render_as_string(hide_password=False))
        names = ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout")
        with other.read() as session:
            assert [session.scalar(text(f"SHOW {name}")) for name in names] == ["30s", "7s", "3s"]
        other.close()


class TestSleepWithinATransaction:
    def test_is_a_connection_that_was_lost(self, database: Database) -> None:
        if database.is_sqlite:
            pytest.skip("only Postgres ends transactions of which nothing is heard")

        def sleep_too_long() -> None:
            with database.write() as session:
                searches.submit(session, SPEC, None)
                session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10ms'"))
                pid = session.scalar(text("SELECT pg_backend_pid()"))
                while self._is_there(database, pid):
                    pass
                session.execute(text("SELECT 1"))

        with pytest.raises(OperationalError, match="idle-in-transaction"):
            sleep_too_long()
        assert contents(database)["searches"] == []
        with database.write() as session:
            searches.submit(session, SPEC, None)
        assert len(contents(database)["searches"]) == 1

    @staticmethod
    def _is_there(database: Database, pid: int | None) -> bool:
        with database.read() as session:
            return session.scalar(text("SELECT 1 FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}) is not None
