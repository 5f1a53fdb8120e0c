"""The outbox: what happened to a search is written down with what happened, in one transaction."""

from typing import Any, Literal

from sqlalchemy.orm import Session

from service.clock import now
from service.models import Event, Search

Kind = Literal["search.state", "search.budget", "trial.state", "trial.progress", "trial.excluded", "trial.included"]


def emit(session: Session, search: Search, kind: Kind, data: dict[str, Any], *, trial_id: str | None = None) -> int:
    """Add an event and return its number; the caller holds the lock of the search, so that numbers have no gaps."""
    search.last_event += 1
    session.add(
        Event(search_id=search.id, number=search.last_event, kind=kind, trial_id=trial_id, data=data, at=now(session))
    )
    return search.last_event
