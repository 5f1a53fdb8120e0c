import asyncio
import json
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from service import notices
from service.notices import MAX_ANSWER_BYTES, NOTICES, Answer, Notice, Receiver, send, signature
from tests.receivers import answering, receiving

NOTICE = Notice(
    number=7,
    kind="trial.state",
    search_id="5f0c",
    trial_id="5f0c-0",
    at=datetime(2026, 1, 1, 12, tzinfo=UTC),
    data={"number": 0, "state": "FAILED", "reason": "ünexpected\n", "loss": None},
)


def _send(url: str, notice: Notice = NOTICE, *, allow_private: bool = True) -> Answer:
    return asyncio.run(send(Receiver(webhook_id="0c1e", url=url, secret="s"), notice, allow_private=allow_private))


def _head(connection: socket.socket) -> None:
    """Read a request, as far as its header goes."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(4096)


class TestNotice:
    def test_is_json_with_everything_in_it(self) -> None:
        assert json.loads(NOTICE.json()) == {
            "number": 7,
            "kind": "trial.state",
            "search_id": "5f0c",
            "trial_id": "5f0c-0",
            "at": "2026-01-01T12:00:00Z",
            "data": {"number": 0, "state": "FAILED", "reason": "ünexpected\n", "loss": None},
        }

    def test_can_be_read_back(self) -> None:
        assert NOTICES.validate_json(NOTICE.json()) == NOTICE


class TestSignature:
    def test_is_the_hmac_of_timestamp_and_body(self) -> None:
        # By openssl: printf '1700000000.{}' | openssl dgst -sha256 -hmac secret
        assert signature("secret", "1700000000", b"{}") == SIGNED

    def test_is_another_one_for_another_secret_timestamp_or_body(self) -> None:
        others = {signature("secret2", "1", b"{}"), signature("secret", "2", b"{}"), signature("secret", "1", b"[]")}
        assert len({signature("secret", "1", b"{}"), *others}) == 4


SIGNED = "v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163"


class TestReceiver:
    def test_does_not_show_its_secret(self) -> None:
        assert "word" not in repr(Receiver(webhook_id="0", url="http://x", secret="word"))


class TestSend:
    def test_says_what_came_back(self) -> None:
        with receiving(lambda index: 202) as receiver:
            answer = _send(receiver.url)
        assert (answer.ok, answer.status, answer.why_not) == (True, 202, None)
        assert answer.seconds > 0
        assert receiver.requests[0].body == NOTICE.json()

    def test_names_every_test_otherwise(self) -> None:
        tests = [
            Notice(number=0, kind="test", search_id=None, trial_id=None, at=datetime(2026, 1, day, tzinfo=UTC), data={})
            for day in (1, 2)
        ]
        with receiving() as receiver:
            for test in tests:
                _send(receiver.url, test)
        assert len({request.headers["Einsearch-Delivery"] for request in receiver.requests}) == 2

    @pytest.mark.parametrize(
        "answer",
        [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 999999 What\r\n\r\n", b"\x16\x03\x01\x00", b"HTTP/1.1 200 OK\r\nX"],
    )
    def test_says_in_words_what_is_wrong_with_an_answer(self, answer: bytes) -> None:
        def say(connection: socket.socket) -> None:
            _head(connection)
            connection.sendall(answer)

        with answering(say) as url:
            failed = _send(url)
        assert (failed.ok, failed.status) == (False, None)
        assert failed.why_not

    def test_waits_for_a_silent_receiver_no_longer_than_the_time_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(notices, "TIMEOUT", 0.2)

        def say_nothing(connection: socket.socket) -> None:
            while connection.recv(4096):
                pass

        with answering(say_nothing) as url:
            assert _send(url).why_not == "expected an answer within 0.2 seconds, got none"

    def test_waits_no_longer_for_one_that_always_says_a_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(notices, "TIMEOUT", 0.2)

        def say_little(connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while True:  # until the other side has gone
                connection.sendall(b"X: x\r\n")
                time.sleep(0.01)

        with answering(say_little) as url:
            assert _send(url).why_not == "expected an answer within 0.2 seconds, got none"

    def test_believes_the_status_of_one_that_never_ends_its_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(notices, "TIMEOUT", 0.2)

        def never_end(connection: socket.socket) -> None:
            _head(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            with suppress(OSError):
                while connection.recv(4096):
                    pass

        with answering(never_end) as url:
            assert _send(url).ok

    def test_does_not_read_long_answers(self) -> None:
        sent = 0

        def say_much(connection: socket.socket) -> None:
            nonlocal sent
            _head(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
            with suppress(OSError):
                while True:
                    sent += connection.send(bytes(MAX_ANSWER_BYTES))

        with answering(say_much) as url:
            assert _send(url).ok
        assert sent < 1000 * MAX_ANSWER_BYTES, "more than what is underway when the connection is closed"
