"""What the processes write down while they work: lines of text for people, or lines of JSON for machines.

A line says what it is about, a request, a search, a trial, without being told in every call: ``with about(search_id=...)``.
What is bound this way belongs to a thread or to an asynchronous task, and goes along into the thread pool of the API.
No line holds a secret: keys, authorizations and passwords are masked in messages, fields and tracebacks alike.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

from pythonjsonlogger.core import RESERVED_ATTRS, LogData
from pythonjsonlogger.json import JsonFormatter

from service.settings import Settings

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))

_SECRETS = (
    (re.compile(r"((?:\bes_[A-Za-z0-9]{1,32}|es_[0-9a-f]{12})_)[A-Za-z0-9_-]+"), r"\1***"),
    (re.compile(r"""(?i)(authorization["']?\s*[:=,]\s*b?["']?(?:[a-z]+\s+(?=\S))?)[^\s"',;]+"""), r"\1***"),
    (re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}"), r"\1***"),
    (re.compile(r"(://[^\s:/@]*:)[^\s@]+@"), r"\1***@"),
    (re.compile(r"""(?i)((?:password|secret)["']?\s*[:=]\s*b?["']?)[^\s"',;&]+"""), r"\1***"),
)

# The first tells of every request that it sends, with its whole address; the other of every look at the schema.
_TALKATIVE = ("httpx2", "alembic")


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Add these fields to every line of the block: ``search_id``, ``trial_id``, ``attempt_id``, ``runner_id``."""
    token = _about.set(MappingProxyType({**_about.get(), **fields}))
    try:
        yield
    finally:
        _about.reset(token)


def bind(**fields: str) -> None:
    """Add these fields to every line from here to the end of this asynchronous task."""
    _about.set(MappingProxyType({**_about.get(), **fields}))


def configure(settings: Settings) -> None:
    """Write the lines of this process to its standard error, in the format and from the level of the settings.

    Raises:
        ValueError: there is no such level.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(settings.log_format))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def formatter(log_format: str) -> logging.Formatter:
    """What makes a line of a record, in one format or the other."""
    return _JsonLines() if log_format == "json" else _TextLines()


def mask(line: str) -> str:
    """The same without its keys, authorizations and passwords."""
    for secret, masked in _SECRETS:
        line = secret.sub(masked, line)
    return line


class _TextLines(logging.Formatter):
    """Time, level, logger, message; then in brackets what it is about."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        context = " ".join(f"{name}={value}" for name, value in _about.get().items())
        return super().formatMessage(record) + (f" [{context}]" if context else "")

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


class _JsonLines(JsonFormatter):
    """One object a line: time, level, logger, message, what it is about, ``extra`` fields, an exception as one of them."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # of uvicorn: the message once more, for terminals
        )

    def add_fields(self, log_data: LogData, record: logging.LogRecord, message_dict: LogData) -> None:
        log_data["time"] = _time(record)
        super().add_fields(log_data, record, message_dict)
        log_data.update(_about.get())

    def process_log_record(self, log_data: LogData) -> LogData:
        # Before it becomes JSON, where a key after a line break would look like a longer word.
        return {name: _masked(value) for name, value in log_data.items()}


def _masked(value: object) -> object:
    """A value that JSON can hold, masked wherever it is text."""
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {mask(str(name)): _masked(inner) for name, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_masked(inner) for inner in value]
    return mask(str(value))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
