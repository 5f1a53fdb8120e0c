import csv
import io
import json
import sys
from datetime import datetime
from typing import Any

import pytest

from einlayers.theta import AXES, NAMED, Theta
from search.states import TrialState
from search.trial import Outcome
from service import export as exporting
from service.database import Database
from service.errors import NotFound
from service.export import COLUMNS, Format, ParquetMissing, export
from service.models import Trial
from tests.rows import Rows
from tests.service.plain_rows import NOON, plain_search, plain_trial

REASONS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "a,b", 'say "so"', "two\r\nlines", "ünï", " =1", ""]


def _file(database: Database, search_id: str, format: Format) -> bytes:
    return b"".join(export(database, search_id, format))


def _csv(database: Database, search_id: str) -> list[dict[str, str]]:
    text = _file(database, search_id, "csv").decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _json(database: Database, search_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _file(database, search_id, "jsonl").decode().split("\n")[:-1]]


def _parquet(database: Database, search_id: str) -> Any:
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(io.BytesIO(_file(database, search_id, "parquet")))


@pytest.fixture
def search_id(rows: Rows) -> str:
    """A search with a trial in every state, one of them excluded."""
    with rows.database.write() as session:
        session.add(plain_search("5f0c"))
        session.flush()
        for number, state in enumerate(TrialState):
            ended = {"finished_at": NOON} if state.is_final else {"loss": None, "seconds": None}
            excluded = {"excluded_at": NOON} if state is TrialState.COMPLETED else {}
            session.add(plain_trial("5f0c", number, state=state, theta=NAMED["low-rank"], **ended, **excluded))
    return "5f0c"


@pytest.fixture
def reasons(rows: Rows) -> str:
    """A search whose trials failed for many reasons."""
    with rows.database.write() as session:
        session.add(plain_search("5f0d"))
        session.flush()
        session.add_all(
            plain_trial("5f0d", number, state=TrialState.FAILED, loss=None, reason=reason)
            for number, reason in enumerate(REASONS)
        )
    return "5f0d"


class TestExport:
    @pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
    def test_refuses_a_search_that_is_not_there_before_it_begins(self, format: Format, database: Database) -> None:
        with pytest.raises(NotFound):
            export(database, "0", format)

    def test_holds_no_connection_between_two_pieces(
        self, rows: Rows, reasons: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exporting, "BATCH", 3)
        pieces = export(rows.database, reasons, "csv")
        assert [_checked_out(rows.database) for _ in pieces] == [0] * 6

    def test_reads_a_batch_only_when_it_is_wanted(
        self, rows: Rows, reasons: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exporting, "BATCH", 3)
        pieces = export(rows.database, reasons, "jsonl")
        found = [next(pieces), next(pieces)]
        with rows.database.write() as session:
            session.add(plain_trial(reasons, len(REASONS)))
        lines = b"".join([*found, *pieces]).decode().split("\n")[:-1]
        assert [json.loads(line)["number"] for line in lines] == list(range(len(REASONS) + 1))

    @pytest.mark.parametrize("batch", [1, 2, 7, 8, 1000])
    def test_is_the_same_in_batches_of_any_size(
        self, batch: int, rows: Rows, search_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = [_file(rows.database, search_id, "csv"), _file(rows.database, search_id, "jsonl")]
        table = _parquet(rows.database, search_id)
        monkeypatch.setattr(exporting, "BATCH", batch)
        assert [_file(rows.database, search_id, "csv"), _file(rows.database, search_id, "jsonl")] == expected
        assert _parquet(rows.database, search_id) == table

    def test_says_the_same_in_every_format(self, rows: Rows, search_id: str, reasons: str) -> None:
        for identifier in (search_id, reasons):
            table = _parquet(rows.database, identifier).to_pylist()
            lines = _json(rows.database, identifier)
            cells = _csv(rows.database, identifier)
            assert [_as_json(row) for row in table] == [
                {**line, "theta": str(Theta(**line["theta"]))} for line in lines
            ]
            assert [_as_csv(row) for row in table] == cells

    def test_tells_everything_of_a_trial(self, rows: Rows) -> None:
        search_id = rows.search()
        rows.trial(search_id, NAMED["monarch"])
        trial_id = rows.trial(search_id, NAMED["btt"])
        rows.outcome(rows.attempt(trial_id), Outcome.completed(loss=1.25, seconds=2.5))
        with rows.database.read() as session:
            trial = session.get_one(Trial, trial_id)
        plain = {name: getattr(trial, name) for name in COLUMNS if hasattr(trial, name) and not name.endswith("_at")}
        exponents = dict(zip(AXES, NAMED["btt"].exponents, strict=True))
        line = _json(rows.database, search_id)[1]
        assert datetime.fromisoformat(line.pop("created_at")) == trial.created_at
        assert datetime.fromisoformat(line.pop("finished_at")) == trial.finished_at
        assert line == {**plain, **exponents, "theta": exponents, "num_attempts": 1, "excluded": False}
        assert list(_json(rows.database, search_id)[0]) == list(COLUMNS)

    def test_marks_what_is_excluded(self, rows: Rows, search_id: str) -> None:
        excluded = [line["state"] for line in _json(rows.database, search_id) if line["excluded"]]
        assert excluded == ["COMPLETED"]


def _checked_out(database: Database) -> int:
    num: int = database.engine.pool.checkedout()  # type: ignore[attr-defined]  # of the pools that we use
    return num


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _time(value) if isinstance(value, datetime) else value for name, value in row.items()}


def _as_csv(row: dict[str, Any]) -> dict[str, str]:
    cells = {name: "" if value is None else str(value) for name, value in _as_json(row).items()}
    harmless = "'" if cells["reason"][:1] in ("=", "+", "-", "@", "\t", "\r") and cells["reason"] else ""
    return {**cells, "reason": harmless + cells["reason"], "excluded": str(row["excluded"]).lower()}


def _time(value: datetime) -> str:
    return value.isoformat().replace("+00:00", "Z")


class TestCsv:
    def test_has_a_header_where_there_are_no_trials(self, rows: Rows) -> None:
        assert _file(rows.database, rows.search(), "csv") == (",".join(COLUMNS) + "\r\n").encode()

    def test_is_rfc_4180(self, rows: Rows, reasons: str) -> None:
        text = _file(rows.database, reasons, "csv").decode()
        lines = text.split("\r\n")
        assert lines[-1] == ""
        assert ',"a,b",' in text
        assert ',"say ""so""",' in text
        assert ',"two\r\nlines",' in text
        assert len(lines) == 1 + len(REASONS) + 2, "a header, an end, and one reason of two lines"

    def test_holds_no_formula(self, rows: Rows, reasons: str) -> None:
        cells = [row["reason"] for row in _csv(rows.database, reasons)]
        assert cells == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\tx", "'\rx", *REASONS[6:]]

    def test_leaves_numbers_as_they_are(self, rows: Rows) -> None:
        with rows.database.write() as session:
            session.add(plain_search("5f0e"))
            session.flush()
            session.add(plain_trial("5f0e", 0, loss=-1.5e-7, seed=2**63 - 1))
        (row,) = _csv(rows.database, "5f0e")
        assert (row["loss"], row["seed"]) == ("-1.5e-07", str(2**63 - 1))


class TestJsonLines:
    def test_is_empty_where_there_are_no_trials(self, rows: Rows) -> None:
        assert _file(rows.database, rows.search(), "jsonl") == b""

    def test_has_theta_as_an_object(self, rows: Rows, search_id: str) -> None:
        line = _json(rows.database, search_id)[0]
        assert Theta(**line["theta"]).exponents == NAMED["low-rank"].exponents
        assert line["rho"] == 0.5

    def test_has_an_object_in_every_line_whatever_the_reason(self, rows: Rows, reasons: str) -> None:
        assert [line["reason"] for line in _json(rows.database, reasons)] == REASONS


class TestParquet:
    def test_has_the_types_of_the_columns(self, rows: Rows, search_id: str) -> None:
        schema = _parquet(rows.database, search_id).schema
        types = {
            "text": "string",
            "whole": "int64",
            "number": "double",
            "flag": "bool",
            "time": "timestamp[us, tz=UTC]",
        }
        assert {field.name: str(field.type) for field in schema} == {
            name: types[kind] for name, kind in COLUMNS.items()
        }

    def test_has_the_columns_where_there_are_no_trials(self, rows: Rows) -> None:
        table = _parquet(rows.database, rows.search())
        assert (table.num_rows, table.column_names) == (0, list(COLUMNS))

    def test_is_refused_where_it_is_not_installed(
        self, rows: Rows, search_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ParquetMissing, match=r"einsearch\[parquet\]"):
            export(rows.database, search_id, "parquet")
