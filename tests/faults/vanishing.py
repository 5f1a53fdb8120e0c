"""Clients that go away in the middle of something, without a word: their connections are reset."""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


def half_a_body(url: str) -> None:
    """Begin to submit a search, and go away within its body."""
    body = json.dumps({"name": "half", "budget": {"max_trials": 1}}).encode()
    with _connect(url) as connection:
        connection.sendall(_head("POST", "/v1/searches", {"Content-Length": len(body)}) + body[: len(body) // 2])
        _reset(connection)


def unread_answer(url: str, body: Mapping[str, Any], key: str) -> None:
    """Submit a search under an ``Idempotency-Key``, and go away before the answer."""
    # Letter by letter as the client writes it: the service compares what comes under the same key.
    content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    headers = {"Content-Length": len(content), "Idempotency-Key": key}
    with _connect(url) as connection:
        connection.sendall(_head("POST", "/v1/searches", headers) + content)
        _reset(connection)


def half_an_answer(url: str, path: str) -> None:
    """Ask for something long, and go away after its first bytes."""
    with _connect(url) as connection:
        connection.sendall(_head("GET", path, {}))
        connection.recv(64)
        _reset(connection)


def _connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def _head(method: str, path: str, headers: Mapping[str, object]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: einsearch", "Content-Type: application/json"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


def _reset(connection: socket.socket) -> None:
    """Have the close that follows drop what is on its way, as the death of a process with unread answers does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
