import base64
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select

from service.database import Database
from service.errors import BadPageToken
from service.models import Search, Trial
from service.paging import Key, PageRequest, page_of
from tests.rows import Rows
from tests.service.pages import Listing, flat, pages_of
from tests.service.plain_rows import plain_search, plain_trial

DIRECTIONS = pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])


def _by_loss(descending: bool = False, at_most: float = 100.0) -> Listing:
    query = select(Trial).where(Trial.loss <= at_most)
    keys = [Key(Trial.loss), Key(Trial.number)]
    return lambda session, page: page_of(session, query, page, keys, descending=descending)


LISTINGS: dict[str, Listing] = {
    "a time and a text": lambda session, page: page_of(
        session, select(Search), page, [Key(Search.created_at), Key(Search.id)], descending=True
    ),
    "a number of 32 bits": lambda session, page: page_of(session, select(Trial), page, [Key(Trial.number)]),
    "a float and a text": lambda session, page: page_of(session, select(Trial), page, [Key(Trial.psi), Key(Trial.id)]),
    "a number of 64 bits": lambda session, page: page_of(
        session, select(Trial), page, [Key(Trial.macs), Key(Trial.id)]
    ),
}
"""Lists by keys of every kind of column."""


def _fill(database: Database, losses: Iterable[float]) -> None:
    """One search, and a trial for every loss."""
    with database.write() as session:
        session.execute(delete(Trial))
        session.execute(delete(Search))
        session.add_all([plain_search("f"), plain_search("e")])
        session.flush()
        session.add_all(plain_trial("f", number, loss=loss) for number, loss in enumerate(losses))


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What a list holds before its first page, and what is added to it after each of the next; sizes of the pages."""

    before: Sequence[float]
    between: Sequence[Sequence[float]]
    size: int


# Few values, so that most have their equals on another page.
_LOSSES = st.lists(st.integers(0, 3).map(float), max_size=12)
_ARRIVALS = st.builds(
    Arrivals, before=_LOSSES, between=st.lists(_LOSSES.filter(lambda new: len(new) < 4)), size=st.integers(1, 5)
)


class TestPages:
    @DIRECTIONS
    @given(arrivals=_ARRIVALS)
    def test_hold_every_row_that_was_there_once_whatever_arrives(
        self, descending: bool, shared: Rows, arrivals: Arrivals
    ) -> None:
        _fill(shared.database, arrivals.before)
        losses, numbers, late = list(arrivals.before), count(len(arrivals.before)), iter(arrivals.between)

        def arrive() -> None:
            with shared.database.write() as session:
                for loss in next(late, ()):
                    losses.append(loss)
                    session.add(plain_trial("f", next(numbers), loss=loss))

        pages = pages_of(shared.database, _by_loss(descending), arrivals.size, arrive)
        found = [int(identifier.split("-")[1]) for identifier in flat(pages)]
        assert len(set(found)) == len(found)
        assert found == sorted(found, key=lambda number: (losses[number], number), reverse=descending)
        assert set(range(len(arrivals.before))) <= set(found)
        assert [len(page) for page in pages[:-1]] == [arrivals.size] * (len(pages) - 1)

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 500])
    def test_are_full_but_for_the_last_which_is_not_empty(self, size: int, shared: Rows) -> None:
        _fill(shared.database, [1.0] * 5)
        pages = pages_of(shared.database, _by_loss(), size)
        assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1)
        assert 0 < len(pages[-1]) <= size

    def test_of_nothing_are_one_empty_page(self, shared: Rows) -> None:
        _fill(shared.database, [])
        assert pages_of(shared.database, _by_loss(), 5) == [[]]

    def test_skip_nothing_when_the_row_that_a_token_names_is_gone(self, shared: Rows) -> None:
        _fill(shared.database, [1.0] * 5)

        def remove() -> None:
            with shared.database.write() as session:
                session.execute(delete(Trial).where(Trial.number == 1))

        assert flat(pages_of(shared.database, _by_loss(), 2, remove)) == ["f-0", "f-1", "f-2", "f-3", "f-4"]

    @pytest.mark.parametrize("loss", [0.1 + 0.2, 1 / 3, 5e-324, 1e-300, 2.0**53 + 2])
    def test_go_on_from_floats_to_the_last_bit(self, loss: float, shared: Rows) -> None:
        _fill(shared.database, [loss] * 3)
        assert flat(pages_of(shared.database, _by_loss(at_most=1e300), 1)) == ["f-0", "f-1", "f-2"]


def _token(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _parts(token: str) -> list[object]:
    parts: list[object] = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    return parts


WRONG: tuple[object, ...] = (None, 1, "x", {}, [], ["x"], [None], [[1]], [1.0, "x"])
"""What no token holds."""

BAD_TOKENS = {
    "empty": "",
    "no base64": "!",
    "no base64 of anything": "x",
    "not ASCII": "é",
    "no UTF-8": base64.urlsafe_b64encode(b"\xff\xfe\xfd").decode(),
    "no JSON": base64.urlsafe_b64encode(b"[1").decode(),
    "nested too deep": base64.urlsafe_b64encode(b"[" * 700).decode(),
    "too many digits": base64.urlsafe_b64encode(b"[" + b"1" * 5000 + b"]").decode(),
    **{json.dumps(value): _token(value) for value in WRONG},
}

STRANGE: tuple[object, ...] = (
    *(None, True, 0, -1, 1.5, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400, float("nan"), float("inf"), [], {}, [1]),
    *("", "x", "\0", "\ud800", "x" * 1000, "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00+00:00"),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+00:00"),
)
"""What somebody might put into a token."""


class TestPageToken:
    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _rows(shared: Rows) -> None:
        _fill(shared.database, [1.0, 1.0, 1.0])

    @pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
    @pytest.mark.parametrize("listing", LISTINGS)
    def test_of_no_list_is_refused(self, listing: str, token: str, shared: Rows) -> None:
        with pytest.raises(BadPageToken), shared.database.read() as session:
            LISTINGS[listing](session, PageRequest(size=2, token=token))

    @pytest.mark.parametrize("asked", LISTINGS)
    @pytest.mark.parametrize("given_by", LISTINGS)
    def test_is_good_for_its_own_list_alone(self, given_by: str, asked: str, shared: Rows) -> None:
        with shared.database.read() as session:
            token = LISTINGS[given_by](session, PageRequest(size=1)).next_token
            assert token is not None
            if given_by == asked:
                assert len(LISTINGS[asked](session, PageRequest(size=1, token=token)).items) == 1
            else:
                with pytest.raises(BadPageToken):
                    LISTINGS[asked](session, PageRequest(size=1, token=token))

    def test_is_good_for_its_own_order_and_conditions_alone(self, shared: Rows) -> None:
        with shared.database.read() as session:
            token = _by_loss()(session, PageRequest(size=1)).next_token
            for listing in (_by_loss(descending=True), _by_loss(at_most=99.0)):
                with pytest.raises(BadPageToken):
                    listing(session, PageRequest(size=1, token=token))

    @pytest.mark.parametrize("listing", LISTINGS)
    def test_that_was_changed_is_refused_or_served(self, listing: str, shared: Rows) -> None:
        with shared.database.read() as session:
            token = LISTINGS[listing](session, PageRequest(size=1)).next_token
            assert token is not None
            parts = _parts(token)
            for place, value in product(range(len(parts)), STRANGE):
                changed = _token([*parts[:place], value, *parts[place + 1 :]])
                with suppress(BadPageToken):
                    assert len(LISTINGS[listing](session, PageRequest(size=2, token=changed)).items) <= 2

    @pytest.mark.parametrize("listing", LISTINGS)
    def test_that_is_longer_or_shorter_is_refused(self, listing: str, shared: Rows) -> None:
        with shared.database.read() as session:
            token = LISTINGS[listing](session, PageRequest(size=1)).next_token
            assert token is not None
            for parts in (_parts(token)[:-1], [*_parts(token), "x"]):
                with pytest.raises(BadPageToken):
                    LISTINGS[listing](session, PageRequest(size=1, token=_token(parts)))
