"""What the operator decides, from the environment (``EINSEARCH_*``); read once at start and passed down."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only processes of the same machine can reach."""


def _check_database_url(url: str) -> str:
    expected = "expected sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"
    try:
        driver = make_url(url).drivername
    except (ArgumentError, ValueError):
        raise ValueError(expected) from None  # without the text: it may hold a password
    if driver not in ("sqlite", "postgresql+psycopg"):
        raise ValueError(f"{expected}, got {driver}://...")
    return url


class Settings(BaseSettings):
    """The settings of API and runner; unset, a service for one machine with everything below ``.einsearch``."""

    model_config = SettingsConfigDict(env_prefix="EINSEARCH_", frozen=True, hide_input_in_errors=True)

    home: Path = Path(".einsearch")
    database_url: Annotated[str | None, AfterValidator(lambda url: url and _check_database_url(url))] = None
    corpora_dir: Path | None = None
    checkpoints_dir: Path | None = None
    hub_dir: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    ray_address: str = "auto"
    ray_namespace: str = "einsearch"
    lease_seconds: Annotated[float, Field(ge=1, le=3600)] = 6.0
    log_level: str = "INFO"
    log_format: Literal["text", "json"] = "text"
    require_keys: bool = False
    requests_per_minute: Annotated[int, Field(ge=1)] = 6000
    max_active_searches: Annotated[int | None, Field(ge=1)] = None
    max_train_flops_per_day: Annotated[float | None, Field(gt=0)] = None
    webhooks_to_private_addresses: bool = False

    @property
    def database(self) -> str:
        """The URL of the database: the one that was set, or the SQLite file in ``home``."""
        return self.database_url or f"sqlite:///{(self.home / 'einsearch.db').absolute()}"

    @property
    def checkpoints(self) -> Path:
        """Where slots keep the checkpoints of paused trials; on several machines a directory that they share."""
        return self.checkpoints_dir or self.home.absolute() / "checkpoints"

    @property
    def needs_keys(self) -> bool:
        """Whether requests must bring an API key: always, unless only this machine can send any."""
        return self.require_keys or self.host not in LOOPBACK

    @property
    def shown_database(self) -> str:
        """The same without its password."""
        return make_url(self.database).render_as_string(hide_password=True)
