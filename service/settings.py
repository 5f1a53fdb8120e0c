"""What the operator decides, from the environment (``EINSEARCH_*``); read once at start and passed down."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError


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
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    ray_address: str = "auto"
    ray_namespace: str = "einsearch"
    log_level: str = "INFO"

    @property
    def database(self) -> str:
        """The URL of the database: the one that was set, or the SQLite file in ``home``."""
        return self.database_url or f"sqlite:///{(self.home / 'einsearch.db').absolute()}"

    @property
    def shown_database(self) -> str:
        """The same without its password."""
        return make_url(self.database).render_as_string(hide_password=True)
