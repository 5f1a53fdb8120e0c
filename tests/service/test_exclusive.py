import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.database import Database
from service.exclusive import only_runner
from tests.databases import Server

PATIENCE = 10.0
"""Seconds after which what should have happened has not."""

HOLDER = """
import sys
from service.database import Database
from service.exclusive import only_runner
with only_runner(Database(sys.argv[1]), sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


class Bell(logging.Handler):
    """Rings when a runner says that it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.rung = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "waiting for it to end" in record.getMessage():
            self.rung.set()


class Second:
    """A runner in a thread, which wants the database too."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._url = url
        self.entered = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with only_runner(self._database, self._url):
            self.entered.set()

    def enters(self) -> bool:
        """Whether it gets in."""
        return self.entered.wait(PATIENCE)

    def end(self) -> None:
        """Wait until it is out again."""
        self._thread.join(PATIENCE)
        self._database.close()


@pytest.fixture
def bell() -> Iterator[Bell]:
    logger, handler = logging.getLogger("service.exclusive"), Bell()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@contextmanager
def _holder(url: str) -> Iterator["subprocess.Popen[str]"]:
    """A runner in a process of its own that holds the database."""
    command = [sys.executable, "-c", HOLDER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


class TestOnlyRunner:
    def test_gets_in_where_there_is_no_other(self, database: Database, database_url: str, bell: Bell) -> None:
        with only_runner(database, database_url):
            assert not bell.rung.is_set()

    def test_waits_until_the_other_has_ended(self, database: Database, database_url: str, bell: Bell) -> None:
        with only_runner(database, database_url):
            second = Second(database_url)
            assert bell.rung.wait(PATIENCE)
            assert not second.entered.is_set()
        database.close()
        assert second.enters()
        second.end()

    def test_lets_the_next_in_when_its_block_ends(self, database: Database, database_url: str) -> None:
        with only_runner(database, database_url):
            pass
        second = Second(database_url)
        entered = second.enters()
        database.close()
        second.end()
        assert entered

    def test_lets_the_next_in_when_its_block_raises(self, database: Database, database_url: str) -> None:
        with pytest.raises(ZeroDivisionError), only_runner(database, database_url):
            raise ZeroDivisionError
        second = Second(database_url)
        entered = second.enters()
        database.close()
        second.end()
        assert entered

    def test_waits_for_a_runner_in_another_process_and_takes_over_when_that_is_killed(
        self, database_url: str, bell: Bell
    ) -> None:
        with _holder(database_url) as holder:
            second = Second(database_url)
            assert bell.rung.wait(PATIENCE)
            assert not second.entered.is_set()
            holder.kill()
            assert second.enters()
        second.end()

    def test_of_one_database_leaves_others_alone(
        self, database: Database, database_url: str, server: Server, bell: Bell
    ) -> None:
        with only_runner(database, database_url), server.migrated() as other:
            second = Second(other)
            assert second.enters()
            second.end()
        assert not bell.rung.is_set()

    def test_says_why_it_waits(
        self, database: Database, database_url: str, bell: Bell, caplog: pytest.LogCaptureFixture
    ) -> None:
        with only_runner(database, database_url):
            second = Second(database_url)
            assert bell.rung.wait(PATIENCE)
        database.close()
        second.end()
        assert [record.levelname for record in caplog.records if record.name == "service.exclusive"] == ["WARNING"]
