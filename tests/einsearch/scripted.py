"""A real HTTP server that answers what a test wrote down, one answer after the other, and keeps what it was asked."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    parameters: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent back; ``breaks``: the connection ends before the answer does."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    breaks: bool = False


DROP = Answer(status=0)
"""No answer: the request arrives, and the connection is closed."""


def json_answer(document: Any, status: int = 200, **headers: str) -> Answer:
    """A document as the API sends it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, body=json.dumps(document).encode(), headers=named)


def problem(status: int, code: str, detail: str = "no", **headers: str) -> Answer:
    """A refusal as the API sends it."""
    return json_answer({"status": status, "code": code, "detail": detail}, status, **headers)


def page(*items: Any, token: str | None = None) -> Answer:
    """A page of a list."""
    return json_answer({"items": items, "next_page_token": token})


def stream_of_events(*events: Mapping[str, Any], breaks: bool = False, rest: str = "") -> Answer:
    """Events as the API sends them, with the sign of life that it sends between them; ``rest`` is half an event."""
    text = "".join(f"id: {e['number']}\nevent: {e['kind']}\ndata: {json.dumps(e)}\n\n: ping\n\n" for e in events)
    return Answer(body=(text + rest).encode(), kind="text/event-stream", breaks=breaks)


class Scripted(ThreadingHTTPServer):
    """Answers in the order of ``script``; what is asked beyond it is answered with the last one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Answer] = []
        self.asked: list[Asked] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def says(self, *script: Answer) -> None:
        """Begin a script anew."""
        self.script = list(script)
        self.asked = []

    def next(self, request: Asked) -> Answer:
        """The answer to a request."""
        self.asked.append(request)
        return self.script[min(len(self.asked), len(self.script)) - 1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        answer = self.server.next(
            Asked(
                method=self.command,
                path=url.path,
                parameters=dict(parse_qsl(url.query)),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=body,
            )
        )
        self.close_connection = answer.breaks or answer is DROP
        if answer is DROP:
            return
        self.send_response(answer.status)
        for name, value in {"Content-Type": answer.kind, **answer.headers}.items():
            self.send_header(name, value)
        if answer.status != 204:
            # One byte is promised that never comes.
            self.send_header("Content-Length", str(len(answer.body) + answer.breaks))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what was asked is in ``asked``."""


@contextmanager
def scripted() -> Iterator[Scripted]:
    """A server in a thread, for as long as the block runs."""
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
