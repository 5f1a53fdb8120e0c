"""A client on the service's own machine."""

from typing import Any

from starlette.testclient import TestClient
from starlette.types import ASGIApp


class LocalClient(TestClient):
    """Asks at localhost, where a service without keys answers."""

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        super().__init__(app, **{"base_url": "http://localhost", **options})
