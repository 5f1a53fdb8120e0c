import asyncio
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from einlayers.theta import NAMED
from search.states import SearchState
from service import events, migrate, notices, repositories, webhooks
from service.clock import now
from service.database import Database
from service.errors import Forbidden, NotFound
from service.events import Kind
from service.keys import LOCAL, Caller, Scope
from service.models import Delivery, Event, Reason, Search, Webhook
from service.transitions import move_search
from service.webhooks import Cursor, TooManyWebhooks, WebhookSender
from tests.databases import Server
from tests.receivers import Received, receiving
from tests.rows import Rows
from tests.waiting import wait_for

ANN = Caller(owner="ann", scopes=frozenset({Scope.SUBMIT}))
BOB = Caller(owner="bob", scopes=frozenset({Scope.SUBMIT}))
BOTH: tuple[Kind, ...] = ("search.state", "trial.state")


def _register(
    database: Database,
    url: str = "http://127.0.0.1:9/",
    *,
    kinds: Sequence[Kind] = ("search.state",),
    search_id: str | None = None,
    caller: Caller = LOCAL,
) -> Webhook:
    with database.write() as session:
        return webhooks.register(session, caller, url=url, kinds=kinds, search_id=search_id)


def _deliver(database: Database, *, allow_private: bool = True) -> int:
    return asyncio.run(WebhookSender(database, allow_private=allow_private).deliver_due())


def _delivery(database: Database, webhook: Webhook, search_id: str) -> Delivery:
    with database.read() as session:
        return session.get_one(Delivery, (webhook.id, search_id))


def _last_event(database: Database, search_id: str) -> int:
    with database.read() as session:
        return session.get_one(Search, search_id).last_event


def _stop(rows: Rows, search_id: str) -> None:
    """One more event of the kind that webhooks are told of."""
    with rows.database.write() as session:
        search = repositories.search_by_id(session, search_id, lock=True)
        move_search(session, search, SearchState.STOPPING, Reason.USER)


def _progress(rows: Rows, search_id: str, num: int) -> None:
    """Events that nobody asked for, but for their number."""
    with rows.database.write() as session:
        search = repositories.search_by_id(session, search_id, lock=True)
        for _ in range(num):
            events.emit(session, search, "trial.progress", {"step": 1})


def _make_due(database: Database) -> None:
    """Have it later: every next try is due now."""
    with database.write() as session:
        session.execute(update(Delivery).values(not_before=now(session)))


def _numbers(requests: Sequence[Received]) -> list[int]:
    return [json.loads(request.body)["number"] for request in requests]


class TestRegister:
    def test_begins_with_what_comes_next(self, rows: Rows) -> None:
        search_id = rows.search()
        with receiving() as receiver:
            webhook = _register(rows.database, receiver.url)
            assert _deliver(rows.database) == 0
            _stop(rows, search_id)
            assert _deliver(rows.database) == 1
        assert _numbers(receiver.requests) == [_last_event(rows.database, search_id)]
        assert _delivery(rows.database, webhook, search_id).delivered == _last_event(rows.database, search_id)

    def test_begins_with_the_first_event_of_searches_to_come(self, rows: Rows) -> None:
        with receiving() as receiver:
            _register(rows.database, receiver.url)
            search_id = rows.search()
            _deliver(rows.database)
        assert _numbers(receiver.requests) == list(range(1, _last_event(rows.database, search_id) + 1))

    def test_is_about_the_searches_of_its_owner(self, rows: Rows) -> None:
        with receiving() as receiver:
            _register(rows.database, receiver.url, caller=ANN)
            rows.search(caller=BOB)
            own = rows.search(caller=ANN)
            _deliver(rows.database)
        assert {json.loads(request.body)["search_id"] for request in receiver.requests} == {own}

    def test_is_about_one_search_where_one_is_named(self, rows: Rows) -> None:
        first, second = rows.search(), rows.search()
        with receiving() as receiver:
            _register(rows.database, receiver.url, search_id=second)
            _stop(rows, first)
            _stop(rows, second)
            rows.search()
            _deliver(rows.database)
        assert {json.loads(request.body)["search_id"] for request in receiver.requests} == {second}

    def test_refuses_a_search_that_is_not_there_or_somebody_elses(self, rows: Rows) -> None:
        with pytest.raises(NotFound):
            _register(rows.database, search_id="0")
        with pytest.raises(Forbidden):
            _register(rows.database, search_id=rows.search(caller=ANN), caller=BOB)
        with rows.database.read() as session:
            assert session.scalars(select(Webhook)).all() == []

    def test_lets_an_admin_follow_any_search(self, rows: Rows) -> None:
        search_id = rows.search(caller=ANN)
        with receiving() as receiver:
            _register(rows.database, receiver.url, search_id=search_id, caller=LOCAL)
            _stop(rows, search_id)
            assert _deliver(rows.database) == 1

    def test_refuses_too_many(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(webhooks, "MAX_PER_OWNER", 2)
        for _ in range(2):
            _register(database, caller=ANN)
        with pytest.raises(TooManyWebhooks):
            _register(database, caller=ANN)
        _register(database, caller=BOB)


class TestRemove:
    def test_ends_it(self, rows: Rows) -> None:
        search_id = rows.search()
        with receiving() as receiver:
            webhook = _register(rows.database, receiver.url)
            _stop(rows, search_id)
            with rows.database.write() as session:
                webhooks.remove(session, LOCAL, webhook.id)
            assert _deliver(rows.database) == 0
        assert receiver.requests == []
        with rows.database.read() as session:
            assert session.scalars(select(Delivery)).all() == []

    def test_while_something_is_on_its_way_changes_nothing_else(self, rows: Rows) -> None:
        removed = threading.Event()

        def remove(index: int) -> int:
            with rows.database.write() as session:
                webhooks.remove(session, LOCAL, webhook.id)
            removed.set()
            return 200

        with receiving(remove) as receiver:
            webhook = _register(rows.database, receiver.url)
            rows.search()
            assert _deliver(rows.database) == 1
        assert removed.is_set()

    def test_refuses_the_webhook_of_another(self, database: Database) -> None:
        webhook = _register(database, caller=ANN)
        with pytest.raises(NotFound), database.write() as session:
            webhooks.remove(session, BOB, webhook.id)
        with database.read() as session:
            assert webhooks.by_id(session, ANN, webhook.id)


class TestDelivery:
    def test_sends_each_event_once_and_in_order(self, rows: Rows) -> None:
        with receiving() as receiver:
            _register(rows.database, receiver.url, kinds=BOTH)
            search_id = rows.search()
            rows.all_proposed(search_id, NAMED.values())
            assert _deliver(rows.database) == _last_event(rows.database, search_id)
            assert _deliver(rows.database) == 0
            _stop(rows, search_id)
            assert _deliver(rows.database) == 1
        assert _numbers(receiver.requests) == list(range(1, _last_event(rows.database, search_id) + 1))

    def test_sends_more_events_than_are_read_at_once(self, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(webhooks, "_EVENTS_AT_ONCE", 2)
        with receiving() as receiver:
            _register(rows.database, receiver.url, kinds=BOTH)
            search_id = rows.search()
            rows.all_proposed(search_id, list(NAMED.values())[:3])
            assert [_deliver(rows.database) for _ in range(4)] == [2, 2, 1, 0]
        assert _numbers(receiver.requests) == [1, 2, 3, 4, 5]

    def test_sends_what_the_event_says(self, rows: Rows) -> None:
        with receiving() as receiver:
            search_id = rows.search()
            _register(rows.database, receiver.url, kinds=["trial.state"])
            trial_id = rows.trial(search_id, NAMED["btt"])
            _deliver(rows.database)
        with rows.database.read() as session:
            event = session.get_one(Event, (search_id, _last_event(rows.database, search_id)))
        (request,) = receiver.requests
        assert json.loads(request.body) == {
            "number": event.number,
            "kind": "trial.state",
            "search_id": search_id,
            "trial_id": trial_id,
            "at": event.at.isoformat().replace("+00:00", "Z"),
            "data": event.data,
        }

    def test_signs_it(self, rows: Rows) -> None:
        with receiving() as receiver:
            webhook = _register(rows.database, f"{receiver.url}/hook?for=me")
            search_id = rows.search(state=SearchState.QUEUED)
            _deliver(rows.database)
        (request,) = receiver.requests
        headers = request.headers
        signed = f"{headers['Einsearch-Timestamp']}.{request.body.decode()}"
        digest = hmac.new(webhook.secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
        assert headers["Einsearch-Signature"] == f"v1={digest}"
        assert abs(int(headers["Einsearch-Timestamp"]) - time.time()) < 3600
        assert headers["Einsearch-Event"] == "search.state"
        assert headers["Einsearch-Delivery"] == f"{webhook.id}-{search_id}-1"
        assert headers["Content-Type"] == "application/json"
        assert request.path == "/hook?for=me"

    def test_leaves_out_what_was_not_asked_for(self, rows: Rows) -> None:
        with receiving() as receiver:
            webhook = _register(rows.database, receiver.url)
            search_id = rows.search()
            _progress(rows, search_id, 300)
            _stop(rows, search_id)
            _progress(rows, search_id, 1)
            assert _deliver(rows.database) == 3
        assert _numbers(receiver.requests) == [1, 2, 303]
        assert _delivery(rows.database, webhook, search_id).delivered == 304

    def test_tells_every_webhook(self, rows: Rows) -> None:
        with receiving() as first, receiving() as second:
            _register(rows.database, first.url)
            _register(rows.database, second.url)
            rows.search(state=SearchState.QUEUED)
            rows.search(state=SearchState.QUEUED)
            assert _deliver(rows.database) == 4
        assert len(first.requests) == len(second.requests) == 2

    def test_does_not_send_twice_from_two_senders(self, rows: Rows) -> None:
        async def both() -> list[int]:
            senders = [WebhookSender(rows.database, allow_private=True) for _ in range(4)]
            return await asyncio.gather(*(sender.deliver_due() for sender in senders))

        with receiving() as receiver:
            _register(rows.database, receiver.url, kinds=BOTH)
            ids = [rows.search(state=SearchState.QUEUED) for _ in range(3)]
            for search_id in ids:
                rows.all_proposed(search_id, list(NAMED.values())[:3])
            assert sum(asyncio.run(both())) == 12
        sent = [(json.loads(request.body)["search_id"], number) for request, number in _with_numbers(receiver.requests)]
        assert sorted(sent) == sorted((search_id, number) for search_id in ids for number in (1, 2, 3, 4))

    def test_does_not_use_the_proxies_of_the_environment(self, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with receiving() as receiver:
            _register(rows.database, receiver.url)
            rows.search(state=SearchState.QUEUED)
            assert _deliver(rows.database) == 1


def _with_numbers(requests: Sequence[Received]) -> list[tuple[Received, int]]:
    return list(zip(requests, _numbers(requests), strict=True))


class TestFailure:
    def test_is_tried_again_before_anything_else_is_sent(self, rows: Rows) -> None:
        with receiving(lambda index: 500 if index in (1, 2) else 200) as receiver:
            webhook = _register(rows.database, receiver.url, kinds=BOTH)
            search_id = rows.search()
            rows.trial(search_id, NAMED["btt"])
            assert _deliver(rows.database) == 1
            delivery = _delivery(rows.database, webhook, search_id)
            assert (delivery.delivered, delivery.failures) == (1, 1)
            assert delivery.last_error == "expected a status of 2xx, got 500"
            assert _deliver(rows.database) == 0, "it is not due yet"
            _make_due(rows.database)
            assert _deliver(rows.database) == 0
            assert _delivery(rows.database, webhook, search_id).failures == 2
            _make_due(rows.database)
            assert _deliver(rows.database) == 2
        delivery = _delivery(rows.database, webhook, search_id)
        assert (delivery.delivered, delivery.failures, delivery.last_error) == (3, 0, None)
        assert _numbers(receiver.requests) == [1, 2, 2, 2, 3]
        names = [request.headers["Einsearch-Delivery"] for request in receiver.requests]
        assert names[1] == names[2] == names[3]
        assert len(set(names)) == 3

    def test_is_tried_again_later_and_later(self, rows: Rows) -> None:
        with receiving(lambda index: 503) as receiver:
            webhook = _register(rows.database, receiver.url)
            search_id = rows.search(state=SearchState.QUEUED)
            for seconds in (5, 10, 20, 40):
                with rows.database.read() as session:
                    before = now(session)
                _deliver(rows.database)
                with rows.database.read() as session:
                    after = now(session)
                next_try = _delivery(rows.database, webhook, search_id).not_before
                assert before <= next_try - timedelta(seconds=seconds) <= after
                _make_due(rows.database)

    def test_is_tried_at_least_every_hour(self) -> None:
        waits = [webhooks.retry_after(failures) for failures in (1, 2, 3, 10, 11, 12, 10**9)]
        assert [wait.total_seconds() for wait in waits] == [5, 10, 20, 2560, 3600, 3600, 3600]

    def test_is_a_redirect_too(self, rows: Rows) -> None:
        with receiving(lambda index: 307) as receiver:
            webhook = _register(rows.database, receiver.url)
            search_id = rows.search(state=SearchState.QUEUED)
            assert _deliver(rows.database) == 0
        assert [request.path for request in receiver.requests] == ["/"]
        error = _delivery(rows.database, webhook, search_id).last_error
        assert error == "expected a status of 2xx, got 307; redirects are not followed"

    def test_is_a_receiver_that_is_not_there(self, rows: Rows) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        webhook = _register(rows.database, f"http://127.0.0.1:{port}/")
        search_id = rows.search(state=SearchState.QUEUED)
        assert _deliver(rows.database) == 0
        assert "ConnectError" in (_delivery(rows.database, webhook, search_id).last_error or "")

    def test_is_an_address_that_has_become_private(self, rows: Rows) -> None:
        with receiving() as receiver:
            webhook = _register(rows.database, receiver.url)
            search_id = rows.search(state=SearchState.QUEUED)
            assert _deliver(rows.database, allow_private=False) == 0
        assert receiver.requests == []
        error = _delivery(rows.database, webhook, search_id).last_error
        assert error is not None
        assert "expected a host with public addresses only" in error

    def test_of_one_search_does_not_hold_up_another(self, rows: Rows) -> None:
        with receiving(lambda index: 500 if index == 0 else 200) as receiver:
            _register(rows.database, receiver.url)
            first = rows.search(state=SearchState.QUEUED)
            _deliver(rows.database)
            second = rows.search(state=SearchState.QUEUED)
            _deliver(rows.database)
        assert [json.loads(request.body)["search_id"] for request in receiver.requests] == [first, second]


class TestClaim:
    def test_of_a_sender_that_died_is_over_after_a_while(self, rows: Rows) -> None:
        with receiving() as receiver:
            webhook = _register(rows.database, receiver.url)
            search_id = rows.search(state=SearchState.QUEUED)
            with rows.database.write() as session:
                assert webhooks.claim(session, Cursor(webhook_id=webhook.id, search_id=search_id)) is not None
            assert _deliver(rows.database) == 0
            _make_due(rows.database)
            assert _deliver(rows.database) == 1

    def test_that_others_took_over_changes_nothing(self, rows: Rows) -> None:
        webhook = _register(rows.database)
        cursor = Cursor(webhook_id=webhook.id, search_id=rows.search(state=SearchState.QUEUED))
        with rows.database.write() as session:
            slow = webhooks.claim(session, cursor)
        _make_due(rows.database)
        with rows.database.write() as session:
            quick = webhooks.claim(session, cursor)
        assert slow is not None
        assert quick is not None
        for answer in (
            notices.Answer(status=500, seconds=1, error=None),
            notices.Answer(status=200, seconds=1, error=None),
        ):
            with rows.database.write() as session:
                assert webhooks.record(session, slow, answer) is None
        delivery = _delivery(rows.database, webhook, cursor.search_id)
        assert (delivery.delivered, delivery.failures, delivery.not_before) == (0, 0, quick.until)

    def test_is_refused_where_nothing_is_left(self, rows: Rows) -> None:
        with rows.database.write() as session:
            assert webhooks.claim(session, Cursor(webhook_id="0", search_id="0")) is None


@pytest.fixture
def sender(database: Database) -> Iterator[WebhookSender]:
    """A sender that runs."""
    running = WebhookSender(database, allow_private=True, interval=0.02)
    running.start()
    yield running
    running.stop()


class TestWebhookSender:
    def test_sends_what_happens_while_it_runs(self, rows: Rows, sender: WebhookSender) -> None:
        with receiving() as receiver:
            _register(rows.database, receiver.url)
            rows.search(state=SearchState.QUEUED)
            wait_for(lambda: len(receiver.requests), until=lambda num: num == 1, what="the first event")
            rows.search(state=SearchState.QUEUED)
            wait_for(lambda: len(receiver.requests), until=lambda num: num == 2, what="the second event")

    def test_holds_nobody_up_for_a_slow_receiver(self, rows: Rows, sender: WebhookSender) -> None:
        go_on = threading.Event()

        def slowly(index: int) -> int:
            go_on.wait()
            return 200

        with receiving(slowly) as slow, receiving() as quick:
            try:
                _register(rows.database, slow.url)
                rows.search(state=SearchState.QUEUED)
                wait_for(lambda: slow.requests, what="the slow one to begin")
                _register(rows.database, quick.url)
                rows.search(state=SearchState.QUEUED)
                wait_for(lambda: quick.requests, what="the quick one to be told")
            finally:
                go_on.set()

    def test_stops_although_a_receiver_never_answers(self, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(notices, "TIMEOUT", 10_000.0)
        monkeypatch.setattr(webhooks, "_MOMENT", 0.05)
        go_on, began = threading.Event(), threading.Event()

        def never(index: int) -> int:
            began.set()
            go_on.wait()
            return 200

        with receiving(never) as receiver:
            try:
                _register(rows.database, receiver.url)
                rows.search(state=SearchState.QUEUED)
                sender = WebhookSender(rows.database, allow_private=True, interval=0.02)
                sender.start()
                assert began.wait(60)
                sender.stop()
            finally:
                go_on.set()

    def test_survives_a_database_that_does_not_answer(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        with server.empty() as url, receiving() as receiver:
            database = Database(url)
            sender = WebhookSender(database, allow_private=True, interval=0.02)
            sender.start()
            try:
                wait_for(lambda: "webhooks wait for the database" in caplog.text, what="a failure")
                migrate.upgrade(url)
                _register(database, receiver.url)
                Rows(database).search(state=SearchState.QUEUED)
                wait_for(lambda: receiver.requests, what="the first event")
            finally:
                sender.stop()
                database.close()
