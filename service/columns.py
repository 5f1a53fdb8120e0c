"""Column types: our value objects as JSON, and times that know their zone."""

import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import JSON, DateTime, Dialect
from sqlalchemy.types import TypeDecorator

T = TypeVar("T")


class AsJSON(TypeDecorator[T]):
    """A value object, written as the JSON that the API speaks and read back through its own constructor.

    ``keep``: so many values, which nobody can change, are kept and given again for the same JSON: a plan of hundreds of runs
    takes longer to check than to read, and a runner reads its searches at every turn.
    """

    impl = JSON
    cache_ok = True

    def __init__(self, value_type: Any, *, keep: int = 0) -> None:
        super().__init__()
        self.value_type = value_type
        self.keep = keep
        self._adapter: TypeAdapter[T] = TypeAdapter(value_type)
        self._kept = lru_cache(maxsize=keep)(self._of_text)

    def process_bind_param(self, value: T | None, dialect: Dialect) -> Any:
        """The JSON of a value."""
        return None if value is None else self._adapter.dump_python(value, mode="json")

    def process_result_value(self, value: Any, dialect: Dialect) -> T | None:
        """The value of its JSON."""
        if value is None:
            return None
        return self._kept(json.dumps(value)) if self.keep else self._adapter.validate_python(value)

    def _of_text(self, text: str) -> T:
        return self._adapter.validate_python(json.loads(text))


class UTCDateTime(TypeDecorator[datetime]):
    """A point in time; SQLite forgets the zone, so it is always UTC there."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """UTC, whatever zone came."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """UTC, with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
