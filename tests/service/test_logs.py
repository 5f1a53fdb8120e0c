import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import logs

KEY = "es_0123456789ab_Qx-7_zSecretSecretSecret"
SECRETS = [
    (f"the key {KEY} was refused", "the key es_0123456789ab_*** was refused"),
    (f"two\n{KEY}", "two\nes_0123456789ab_***"),
    ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
    ("{'authorization': 'Basic dXNlcjpwYXNz', 'accept': '*/*'}", "{'authorization': 'Basic ***', 'accept': '*/*'}"),
    ("(b'authorization', b'token-of-a-sort')", "(b'authorization', b'***')"),
    ("with bearer eyJhbGciOiJIUzI1NiJ9.e30", "with bearer ***"),
    ("postgresql+psycopg://user:p%40ss/word@host/name", "postgresql+psycopg://user:***@host/name"),
    (
        "connection to 'host=h user=u password=hunter2 dbname=d' failed",
        "connection to 'host=h user=u password=*** dbname=d' failed",
    ),
    ('{"secret": "whsec-123", "url": "https://a.example/"}', '{"secret": "***", "url": "https://a.example/"}'),
]
HARMLESS = [
    "search 5f0c2ab91d3e ended: COMPLETED, BUDGET_TRIALS",
    "postgresql+psycopg://user@host:5432/name",
    "http://127.0.0.1:8000/v1/searches?page_size=10",
    "those types_of_things, yes_or_no",
    "no authorization was needed; the bearer of news",
]

Lines = Callable[[], list[str]]


@pytest.fixture
def logger() -> logging.Logger:
    """A logger that leads nowhere else."""
    own = logging.Logger("tests.logs", logging.DEBUG)
    assert own.parent is None
    return own


@pytest.fixture
def text(logger: logging.Logger) -> Lines:
    """What the logger has written as text."""
    return _lines_of(logger, "text")


@pytest.fixture
def objects(logger: logging.Logger) -> Callable[[], list[dict[str, Any]]]:
    """What the logger has written as JSON."""
    read = _lines_of(logger, "json")
    return lambda: [json.loads(line) for line in read()]


def _lines_of(logger: logging.Logger, log_format: str) -> Lines:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.formatter(log_format))
    logger.addHandler(handler)
    return lambda: stream.getvalue().splitlines()


def _fail() -> None:
    raise RuntimeError(f"no such key: {KEY}")


class TestText:
    def test_says_when_how_bad_where_and_what(self, logger: logging.Logger, text: Lines) -> None:
        logger.warning("lost %d attempts", 3)
        (line,) = text()
        time, rest = line.split(" ", 1)
        assert datetime.fromisoformat(time).tzinfo == UTC
        assert rest == "WARNING tests.logs: lost 3 attempts"

    def test_says_what_it_is_about(self, logger: logging.Logger, text: Lines) -> None:
        with logs.about(search_id="5f0c", trial_id="5f0c-7"):
            logger.info("started")
        assert text()[0].endswith(": started [search_id=5f0c trial_id=5f0c-7]")

    def test_puts_an_exception_below(self, logger: logging.Logger, text: Lines) -> None:
        with logs.about(search_id="5f0c"):
            try:
                _fail()
            except RuntimeError:
                logger.exception("failed")
        first, second, *_, last = text()
        assert first.endswith(": failed [search_id=5f0c]")
        assert second == "Traceback (most recent call last):"
        assert last == "RuntimeError: no such key: es_0123456789ab_***"


class TestJson:
    def test_has_a_field_for_everything(self, logger: logging.Logger, objects: Callable[[], list[Any]]) -> None:
        with logs.about(search_id="5f0c"):
            logger.info("took %s over", "a slot", extra={"slot": 3})
        (line,) = objects()
        assert datetime.fromisoformat(line.pop("time")).tzinfo == UTC
        assert line == {
            "level": "INFO",
            "logger": "tests.logs",
            "message": "took a slot over",
            "slot": 3,
            "search_id": "5f0c",
        }

    def test_keeps_an_exception_in_one_field(self, logger: logging.Logger, objects: Callable[[], list[Any]]) -> None:
        try:
            _fail()
        except RuntimeError:
            logger.exception("failed")
        (line,) = objects()
        assert line["message"] == "failed"
        assert line["exception"].startswith("Traceback (most recent call last):\n")
        assert line["exception"].endswith("RuntimeError: no such key: es_0123456789ab_***")
        assert "exc_info" not in line

    def test_leaves_out_what_uvicorn_says_twice(self, logger: logging.Logger, objects: Callable[[], list[Any]]) -> None:
        logger.info("started", extra={"color_message": "\x1b[36mstarted\x1b[0m"})
        assert set(objects()[0]) == {"time", "level", "logger", "message"}

    def test_masks_every_field(self, logger: logging.Logger, objects: Callable[[], list[Any]]) -> None:
        nested = {"headers": [("Authorization: Bearer abc", 1), None], KEY: True}
        logger.info("called", extra={"nested": nested, "error": ValueError(KEY)})
        (line,) = objects()
        masked = "es_0123456789ab_***"
        assert line["nested"] == {"headers": [["Authorization: Bearer ***", 1], None], masked: True}
        assert line["error"] == masked

    @given(st.text(), st.text())
    def test_is_one_line_whatever_is_said(self, message: str, name: str) -> None:
        logger = logging.Logger("tests.logs")
        read = _lines_of(logger, "json")
        with logs.about(search_id=name):
            logger.info("%s", message + KEY)
        (line,) = read()
        assert "Secret" not in line
        assert "message" in json.loads(line)


class TestAbout:
    def test_ends_with_its_block_and_nests(self, logger: logging.Logger, objects: Callable[[], list[Any]]) -> None:
        with logs.about(runner_id="r"):
            with logs.about(search_id="s", trial_id="t"), logs.about(trial_id="u"):
                logger.info("inside")
            logger.info("outside")
        logger.info("after")
        ids = [{name: line[name] for name in line if name.endswith("_id")} for line in objects()]
        assert ids == [{"runner_id": "r", "search_id": "s", "trial_id": "u"}, {"runner_id": "r"}, {}]

    def test_ends_with_an_exception(self, logger: logging.Logger, text: Lines) -> None:
        with pytest.raises(RuntimeError), logs.about(search_id="5f0c"):
            _fail()
        logger.info("after")
        assert text()[0].endswith(": after")


class TestMask:
    @pytest.mark.parametrize(("line", "masked"), SECRETS)
    def test_hides_secrets(self, line: str, masked: str) -> None:
        assert logs.mask(line) == masked
        assert logs.mask(masked) == masked

    @pytest.mark.parametrize("line", HARMLESS)
    def test_leaves_everything_else(self, line: str) -> None:
        assert logs.mask(line) == line


WRITES = """
import logging
from service import logs
from service.settings import Settings
logging.basicConfig(format="another: %(message)s")
logs.configure(Settings())
logging.getLogger("a").debug("quiet")
logging.getLogger("a").info("loud")
logging.getLogger("httpx2").info("HTTP Request: GET http://a.example/?token=x")
logging.getLogger("alembic.runtime.migration").info("Context impl SQLiteImpl.")
"""


class TestConfiguration:
    @pytest.mark.parametrize(("level", "messages"), [("info", ["loud"]), ("DEBUG", ["quiet", "loud"]), ("ERROR", [])])
    def test_follows_the_settings(self, level: str, messages: list[str]) -> None:
        settings = {"EINSEARCH_LOG_LEVEL": level, "EINSEARCH_LOG_FORMAT": "json"}
        done = subprocess.run(
            [sys.executable, "-c", WRITES], env={**os.environ, **settings}, capture_output=True, text=True, check=True
        )
        assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == messages
        assert done.stdout == ""
