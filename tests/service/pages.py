"""All pages of a list, one after the other."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.orm import Session

from service.database import Database
from service.paging import Page, PageRequest

Listing = Callable[[Session, PageRequest], Page[Any]]


def pages_of(
    database: Database, listing: Listing, size: int, between: Callable[[], object] = lambda: None
) -> list[list[str]]:
    """The ids on every page, with something happening between one and the next."""
    pages: list[list[str]] = []
    token = None
    while True:
        with database.read() as session:
            page = listing(session, PageRequest(size=size, token=token))
        pages.append([row.id for row in page.items])
        if page.next_token is None:
            return pages
        token = page.next_token
        between()


def flat(pages: Sequence[Sequence[str]]) -> list[str]:
    """The ids on all pages."""
    return [identifier for page in pages for identifier in page]
