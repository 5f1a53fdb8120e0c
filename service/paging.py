"""Pages of a list by keyset: a token says where the last page ended, so rows that arrive meanwhile shift nothing.

A list is in the order of some columns that end with a unique one. A row that was there before the first page, and whose
columns of the order do not change, is on exactly one page, whatever is inserted or removed between two of them.
"""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Float, Integer, Select, String, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.columns import UTCDateTime
from service.errors import BadPageToken

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """How many rows, after which."""

    size: int
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Row]):
    """Some rows of a list, and the token of the next ones."""

    items: Sequence[Row]
    next_token: str | None


@dataclass(frozen=True, slots=True)
class Key:
    """A column that a list is ordered by; never null in the rows of the list."""

    column: InstrumentedAttribute[Any]

    def of(self, row: object) -> Any:
        """The value of a row, as a token holds it."""
        value = getattr(row, self.column.key)
        return value.isoformat() if isinstance(value, datetime) else value

    def read(self, value: Any) -> Any:
        """The value that a token holds, if the column can hold it.

        Raises:
            TypeError, ValueError, OverflowError: it cannot.
        """
        return next(read for kind, read in _READERS if isinstance(self.column.type, kind))(value)


def page_of(
    session: Session, query: Select[Row], request: PageRequest, keys: Sequence[Key], *, descending: bool = False
) -> Page[Row]:
    """One page of a query: the rows after the last one seen, in the order of ``keys``, of which the last is unique.

    The token is good for the same query in the same order only: its conditions are part of it.

    Raises:
        BadPageToken: the token was not handed out for this query in this order.
    """
    order = [key.column.desc() if descending else key.column.asc() for key in keys]
    of = _fingerprint(query, order)
    if request.token is not None:
        seen = _decode(request.token, of, [key.read for key in keys])
        query = query.where(_after(keys, seen, descending))
    rows = session.scalars(query.order_by(*order).limit(request.size + 1)).all()
    items = rows[: request.size]
    more = len(rows) > request.size
    return Page(items=items, next_token=_encode(of, [key.of(items[-1]) for key in keys]) if more else None)


Standing = tuple[tuple[float, ...], str]
"""Where something stands in a sorted list: its numbers, and a text that is its own."""


def places_of(
    standings: Sequence[Standing], request: PageRequest, *, of: str, num_numbers: int
) -> tuple[range, str | None]:
    """The places on one page of a list that was sorted here: those after the last one seen; and the token of the next page.

    Raises:
        BadPageToken: the token was not handed out for the list named ``of``.
    """
    name, start = _digest(of), 0
    if request.token is not None:
        *seen, last = _decode(request.token, name, [*[_read_number] * num_numbers, _read_text])
        start = bisect_right(standings, (tuple(seen), last))
    stop = min(start + request.size, len(standings))
    if stop == len(standings):
        return range(start, stop), None
    numbers, text = standings[stop - 1]
    return range(start, stop), _encode(name, [*numbers, text])


def _after(keys: Sequence[Key], seen: Sequence[Any], descending: bool) -> ColumnElement[bool]:
    # A comparison of rows, not of one column or the next: both databases walk the index on from that very place.
    columns = tuple_(*(key.column for key in keys))
    last = tuple_(*seen, types=[key.column.type for key in keys])
    return columns < last if descending else columns > last


def _fingerprint(query: Select[Row], order: Sequence[ColumnElement[Any]]) -> str:
    names = " ".join(str(column) for column in order)
    if query.whereclause is not None:
        compiled = query.whereclause.compile()
        names += f" {compiled} {sorted(compiled.params.items())}"
    return _digest(names)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encode(of: str, values: Sequence[Any]) -> str:
    return urlsafe_b64encode(json.dumps([of, *values]).encode()).decode().rstrip("=")


def _decode(token: str, of: str, readers: Sequence[Callable[[Any], Any]]) -> list[Any]:
    try:
        name, *values = json.loads(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if name != of:
            raise BadPageToken
        return [read(value) for read, value in zip(readers, values, strict=True)]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadPageToken from error


def _read_time(value: Any) -> datetime:
    time = datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError(value)
    return time.astimezone(UTC)


def _read_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
        raise TypeError(value)
    return float(value)


def _read_whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise TypeError(value)
    return value


def _read_ordinal(value: Any) -> int:
    number = _read_whole(value)
    if number >= 2**31:  # the column is no wider, and Postgres refuses to compare
        raise ValueError(value)
    return number


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise TypeError(value)
    return value


_READERS: Sequence[tuple[type[Any], Callable[[Any], Any]]] = (
    (UTCDateTime, _read_time),
    (Float, _read_number),
    (BigInteger, _read_whole),  # before Integer, of which it is one
    (Integer, _read_ordinal),
    (String, _read_text),
)
