"""A scripted service, and a client of it that does not wait long."""

from collections.abc import Iterator

import pytest

from einsearch.client import Client, Patience
from tests.einsearch.scripted import Scripted, scripted

EAGER = Patience(first_pause=0.001, longest_pause=0.002)


@pytest.fixture
def server() -> Iterator[Scripted]:
    """The service."""
    with scripted() as running:
        yield running


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    """A client that asks again at once."""
    with Client(server.url, patience=EAGER) as connected:
        yield connected
