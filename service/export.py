"""All trials of a search as a table: CSV, JSON Lines or Parquet, in pieces, so that its size does not matter.

The trials are read in batches by their number, each in a transaction of its own: an export is exact in every row, and as
recent as its reading. The columns are written down once, for the three formats.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, Protocol, get_args

from sqlalchemy import Row, Select, func, select

from einlayers.theta import AXES, Theta
from search.variant import Variant
from service import repositories
from service.database import Database
from service.errors import ServiceError
from service.models import Attempt, Trial

Format = Literal["csv", "jsonl", "parquet"]
Type = Literal["text", "whole", "number", "flag", "time"]
Value = str | int | float | bool | datetime | Theta | Variant | None
Record = Mapping[str, Value]

COLUMNS: Mapping[str, Type] = MappingProxyType(
    {
        "id": "text",
        "number": "whole",
        "replicate": "whole",
        "origin": "text",
        "state": "text",
        "reason": "text",
        "family": "text",
        **{axis: "number" for axis in AXES},
        "theta": "text",
        "variant": "text",
        "width": "whole",
        "omega": "number",
        "psi": "number",
        "nu": "number",
        "params": "whole",
        "macs": "whole",
        "train_flops": "number",
        "base_lr": "number",
        "seed": "whole",
        "history_size": "whole",
        "reused_from": "text",
        "loss": "number",
        "latency": "number",
        "peak_memory": "whole",
        "seconds": "number",
        "cpu_seconds": "number",
        "num_attempts": "whole",
        "excluded": "flag",
        "created_at": "time",
        "finished_at": "time",
    }
)
"""The columns in their order, and what is in them. In JSON Lines ``theta`` and ``variant`` are the objects that the API
speaks."""

BATCH = 1000

_COMPUTED = (*AXES, "num_attempts", "excluded")
_FREE_TEXT = ("reason",)
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


class ParquetMissing(ServiceError):
    """The service is installed without what writes Parquet."""

    status_code = 422
    code = "parquet_missing"

    def __init__(self) -> None:
        super().__init__(
            "this service cannot write Parquet, because pyarrow is not installed; ask for csv or jsonl, or have who runs it "
            'install the extra: pip install "einsearch[parquet]"'
        )


class Writer(Protocol):
    """Makes the bytes of a file: those before the records, of some records, and after the last one."""

    media_type: str

    def begin(self) -> bytes:
        """What a file begins with."""
        ...

    def add(self, records: Sequence[Record]) -> bytes:
        """Some more records."""
        ...

    def end(self) -> bytes:
        """What a file ends with."""
        ...


def media_type(format: Format) -> str:
    """The ``Content-Type`` of a format."""
    return _WRITERS[format].media_type


def export(database: Database, search_id: str, format: Format) -> Iterator[bytes]:
    """The trials of a search, piece by piece; what can be refused is refused before the first piece.

    Raises:
        NotFound: there is no such search.
        ParquetMissing: it is Parquet that is missing.
    """
    with database.read() as session:
        repositories.search_by_id(session, search_id)
    return _pieces(database, search_id, _WRITERS[format]())


def _pieces(database: Database, search_id: str, writer: Writer) -> Iterator[bytes]:
    yield writer.begin()
    for records in _batches(database, search_id):
        yield writer.add(records)
    yield writer.end()


def _batches(database: Database, search_id: str) -> Iterator[list[Record]]:
    last = -1
    while True:
        with database.read() as session:
            rows = session.execute(_select(search_id, last)).all()
        if not rows:
            return
        yield [_record(row) for row in rows]
        last = rows[-1].number


def _select(search_id: str, after: int) -> Select[Any]:
    num_attempts = select(func.count()).where(Attempt.trial_id == Trial.id).scalar_subquery().label("num_attempts")
    stored = [getattr(Trial, name) for name in COLUMNS if name not in _COMPUTED]
    excluded = Trial.excluded_at.is_not(None).label("excluded")
    query = select(*stored, num_attempts, excluded).where(Trial.search_id == search_id, Trial.number > after)
    return query.order_by(Trial.number).limit(BATCH)


def _record(row: Row[Any]) -> Record:
    values = row._asdict()
    values |= dict(zip(AXES, row.theta.exponents, strict=True))
    return {name: values[name] for name in COLUMNS}


class _Csv:
    """RFC 4180. Free text that a spreadsheet would take for a formula gets an apostrophe, by which it does not."""

    media_type = "text/csv; charset=utf-8; header=present"

    def begin(self) -> bytes:
        return _csv_lines([list(COLUMNS)])

    def add(self, records: Sequence[Record]) -> bytes:
        return _csv_lines([[_cell(name, value) for name, value in record.items()] for record in records])

    def end(self) -> bytes:
        return b""


def _csv_lines(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(name: str, value: Value) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return _time(value)
    if name in _FREE_TEXT and isinstance(value, str) and value.startswith(_FORMULAS):
        return f"'{value}"
    return value


class _JsonLines:
    """An object a line."""

    media_type = "application/jsonl"

    def begin(self) -> bytes:
        return b""

    def add(self, records: Sequence[Record]) -> bytes:
        return "".join(json.dumps(record, default=_json, ensure_ascii=False) + "\n" for record in records).encode()

    def end(self) -> bytes:
        return b""


def _json(value: object) -> object:
    if isinstance(value, Theta | Variant):
        return asdict(value)
    assert isinstance(value, datetime)
    return _time(value)


def _time(value: datetime) -> str:
    return value.isoformat().replace("+00:00", "Z")


class _Parquet:
    """A row group for each batch.

    Raises:
        ParquetMissing: pyarrow is not installed.
    """

    media_type = "application/vnd.apache.parquet"

    def __init__(self) -> None:
        # Half a second, and an extra: only for whom it concerns.
        try:
            import pyarrow  # type: ignore[import-untyped]
            import pyarrow.parquet  # type: ignore[import-untyped]
        except ImportError as error:
            raise ParquetMissing from error
        types = {
            "text": pyarrow.string(),
            "whole": pyarrow.int64(),
            "number": pyarrow.float64(),
            "flag": pyarrow.bool_(),
            "time": pyarrow.timestamp("us", tz="UTC"),
        }
        self._schema = pyarrow.schema([(name, types[type_]) for name, type_ in COLUMNS.items()])
        self._batch = pyarrow.RecordBatch.from_pylist
        self._sink = _Sink()
        self._writer = pyarrow.parquet.ParquetWriter(self._sink, self._schema)

    def begin(self) -> bytes:
        return self._sink.take()

    def add(self, records: Sequence[Record]) -> bytes:
        rows = [{name: _text(value) for name, value in record.items()} for record in records]
        self._writer.write_batch(self._batch(rows, schema=self._schema))
        return self._sink.take()

    def end(self) -> bytes:
        self._writer.close()
        return self._sink.take()


def _text(value: Value) -> Value:
    return str(value) if isinstance(value, Theta | Variant) else value


class _Sink(io.RawIOBase):
    """A file that forgets what was taken from it."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written.append(bytes(data))
        return len(self._written[-1])

    def take(self) -> bytes:
        taken = b"".join(self._written)
        self._written.clear()
        return taken


_WRITERS: Mapping[Format, type[Writer]] = {"csv": _Csv, "jsonl": _JsonLines, "parquet": _Parquet}
assert set(_WRITERS) == set(get_args(Format))
