"""Answers that are read while they come: the events of a search, across as many connections as it takes; its export."""

import json
import time
from collections.abc import Iterator
from typing import IO, cast

import httpx2

from einsearch.answers import Event
from einsearch.patience import Patience
from einsearch.transport import BROKEN, Connection, Unreachable


def follow_events(connection: Connection, path: str, after: int, patience: Patience) -> Iterator[Event]:
    """The events after one of them, each once and in order, until the service says that there will be no more.

    Raises:
        Unreachable: the service is away for too long, or what it sends is no stream of events.
    """
    pauses = patience.pauses()
    while True:
        with connection.stream(path, headers=_headers(after)) as response:
            if response.status_code == 204:
                return
            try:
                for event in _events(response):
                    if event["number"] > after:
                        after, pauses = event["number"], patience.pauses()
                        yield event
            except BROKEN:
                pass  # the next connection goes on after the last event
            except (httpx2.HTTPError, ValueError, TypeError, KeyError) as error:
                raise Unreachable(f"what answers at {connection.url} sends no events of einsearch: {error}") from error
        time.sleep(next(pauses))


def copy(connection: Connection, path: str, parameters: dict[str, str], file: IO[bytes]) -> int:
    """Write an answer into a file while it comes; how many bytes it takes.

    Raises:
        Unreachable: it broke off; what is in the file is not all.
    """
    size = 0
    with connection.stream(path, params=parameters) as response:
        parts = response.iter_bytes()
        while part := _next(parts, size):
            file.write(part)
            size += len(part)
    return size


def _next(parts: Iterator[bytes], size: int) -> bytes:
    try:
        return next(parts, b"")
    except httpx2.HTTPError as error:
        raise Unreachable(f"the answer broke off after {size:,} bytes: {error}; ask for it again") from error


def _events(response: httpx2.Response) -> Iterator[Event]:
    for sent in httpx2.EventSource(response):
        if sent.data:
            yield cast(Event, json.loads(sent.data))


def _headers(after: int) -> dict[str, str]:
    return {"Accept": "text/event-stream", "Cache-Control": "no-store", "Last-Event-ID": str(after)}
