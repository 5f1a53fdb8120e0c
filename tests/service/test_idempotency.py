import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from service.clock import now
from service.database import Database
from service.idempotency import (
    REMEMBERED,
    Answer,
    InFlight,
    KeyedRequest,
    KeyReused,
    answer_once,
    fingerprint,
    forget_old,
)
from service.models import IdempotencyKey

REQUEST = KeyedRequest(owner="ada", key="k1", fingerprint=fingerprint("POST", "/v1/searches", b"{}"))
ANSWER = Answer(
    status=201, location="/v1/searches/5f0c", body={"id": "5f0c", "name": "\u03c9", "spec": {"rho": 1e-300}}
)


class Made:
    """Makes an answer, and counts how often."""

    def __init__(self, answer: Answer = ANSWER) -> None:
        self.times = 0
        self._answer = answer

    def __call__(self) -> Answer:
        self.times += 1
        return self._answer


def _answer(database: Database, make: Callable[[], Answer], request: KeyedRequest = REQUEST) -> Answer:
    with database.write() as session:
        return answer_once(session, request, make)


def _num_stored(database: Database) -> int:
    with database.read() as session:
        return session.scalars(select(func.count()).select_from(IdempotencyKey)).one()


class Refused(Exception):
    pass


def _refuse() -> Answer:
    raise Refused


class TestTheSameRequest:
    def test_is_carried_out_once_and_answered_the_same(self, database: Database) -> None:
        make = Made()
        assert _answer(database, make) == ANSWER
        for _ in range(2):
            assert _answer(database, make) == replace(ANSWER, replayed=True)
        assert make.times == 1

    def test_keeps_the_order_of_fields(self, database: Database) -> None:
        _answer(database, Made())
        assert list(_answer(database, Made()).body) == list(ANSWER.body)

    def test_of_another_owner_is_another_one(self, database: Database) -> None:
        other = replace(ANSWER, location="/v1/searches/aaaa")
        _answer(database, Made())
        assert _answer(database, Made(other), replace(REQUEST, owner="ben")) == other

    def test_that_was_refused_leaves_nothing_and_can_be_corrected(self, database: Database) -> None:
        with pytest.raises(Refused):
            _answer(database, _refuse)
        assert _num_stored(database) == 0
        corrected = replace(REQUEST, fingerprint=fingerprint("POST", "/v1/searches", b'{"a": 1}'))
        assert _answer(database, Made(), corrected) == ANSWER

    def test_is_stored_with_what_it_makes_or_not_at_all(self, database: Database) -> None:
        with suppress(Refused), database.write() as session:
            answer_once(session, REQUEST, Made())
            raise Refused
        assert _num_stored(database) == 0


class TestAnotherRequest:
    def test_with_the_same_key_is_refused_and_does_nothing(self, database: Database) -> None:
        _answer(database, Made())
        make = Made()
        with pytest.raises(KeyReused, match="got 'k1', which has answered another one") as refused:
            _answer(database, make, replace(REQUEST, fingerprint=fingerprint("POST", "/v1/webhooks", b"{}")))
        assert (refused.value.status_code, refused.value.code) == (422, "idempotency_key_reused")
        assert make.times == 0
        assert _answer(database, make).replayed


class TestFlight:
    def test_is_seen_by_other_processes_on_postgres(self, database: Database) -> None:
        if database.is_sqlite:
            pytest.skip("SQLite lets one write at a time; the next test is about that")

        def make() -> Answer:
            with pytest.raises(InFlight) as refused:
                _answer(database, Made())
            assert (refused.value.status_code, refused.value.code) == (409, "in_flight")
            assert refused.value.headers == {"Retry-After": "1"}
            assert _answer(database, Made(), replace(REQUEST, key="k2")) == ANSWER
            return ANSWER

        _answer(database, make)
        assert _answer(database, Made()).replayed

    def test_is_waited_for_on_sqlite(self, database: Database) -> None:
        if not database.is_sqlite:
            pytest.skip("Postgres lets many write at a time; the test before is about that")
        second: list[Answer] = []
        begun = threading.Event()

        def send_again() -> None:
            begun.set()
            second.append(_answer(database, _refuse))

        thread = threading.Thread(target=send_again)

        def make() -> Answer:
            thread.start()
            begun.wait()
            return ANSWER

        _answer(database, make)
        thread.join()
        assert second == [replace(ANSWER, replayed=True)]

    def test_ends_with_a_refusal(self, database: Database) -> None:
        with pytest.raises(Refused):
            _answer(database, _refuse)
        assert _answer(database, Made()) == ANSWER


class TestForgetting:
    def test_takes_what_is_older_than_a_day(self, database: Database) -> None:
        _answer(database, Made())
        _answer(database, Made(), replace(REQUEST, key="new"))
        with database.write() as session:
            old = now(session) - REMEMBERED - timedelta(seconds=1)
            session.execute(update(IdempotencyKey).where(IdempotencyKey.key == "k1").values(created_at=old))
        with database.write() as session:
            forget_old(session)
        with database.read() as session:
            assert session.scalars(select(IdempotencyKey.key)).all() == ["new"]
        assert not _answer(database, Made()).replayed


REQUESTS = st.tuples(st.sampled_from(["POST", "PUT"]), st.sampled_from(["/v1/a", "/v1/a/b"]), st.binary())


class TestFingerprint:
    @given(REQUESTS, REQUESTS)
    def test_is_the_same_for_the_same_only(self, one: tuple[str, str, bytes], other: tuple[str, str, bytes]) -> None:
        assert (fingerprint(*one) == fingerprint(*other)) == (one == other)

    def test_fits_its_column(self) -> None:
        assert len(REQUEST.fingerprint) == 64


class TestLock:
    @given(st.text(), st.text())
    def test_is_a_number_that_postgres_takes(self, owner: str, key: str) -> None:
        assert -(2**63) <= KeyedRequest(owner=owner, key=key, fingerprint="").lock < 2**63
