from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings

POSTGRES = "postgresql+psycopg://user:secret@host/name"


class TestDefaults:
    def test_keep_everything_below_one_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert Settings().home == Path(".einsearch")
        assert Settings().database == f"sqlite:///{tmp_path}/.einsearch/einsearch.db"

    def test_listen_on_loopback_alone(self) -> None:
        assert Settings().host == "127.0.0.1"

    def test_allow_no_file_of_a_user(self) -> None:
        assert Settings().corpora_dir is None

    def test_know_of_no_data_set_that_was_fetched(self) -> None:
        assert Settings().hub_dir is None


class TestEnvironment:
    @pytest.mark.parametrize(
        ("variable", "field", "text", "value"),
        [
            ("EINSEARCH_HOME", "home", "elsewhere", Path("elsewhere")),
            ("EINSEARCH_DATABASE_URL", "database", POSTGRES, POSTGRES),
            ("EINSEARCH_CORPORA_DIR", "corpora_dir", "texts", Path("texts")),
            ("EINSEARCH_HUB_DIR", "hub_dir", "fetched", Path("fetched")),
            ("EINSEARCH_HOST", "host", "0.0.0.0", "0.0.0.0"),
            ("EINSEARCH_PORT", "port", "0", 0),
            ("EINSEARCH_RAY_ADDRESS", "ray_address", "ray://head:10001", "ray://head:10001"),
            ("EINSEARCH_RAY_NAMESPACE", "ray_namespace", "other", "other"),
            ("EINSEARCH_LOG_LEVEL", "log_level", "DEBUG", "DEBUG"),
        ],
    )
    def test_sets(self, variable: str, field: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(variable, text)
        assert getattr(Settings(), field) == value

    def test_is_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = Settings()
        monkeypatch.setenv("EINSEARCH_PORT", "1")
        assert settings.port == 8000

    def test_of_an_empty_database_url_means_the_file_in_home(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EINSEARCH_DATABASE_URL", "")
        assert Settings(home=tmp_path).database == f"sqlite:///{tmp_path}/einsearch.db"

    @pytest.mark.parametrize("port", ["-1", "65536", "http", "1e3", ""])
    def test_of_no_port_is_refused(self, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EINSEARCH_PORT", port)
        with pytest.raises(ValidationError, match="port"):
            Settings()


class TestDatabaseUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "mysql://user:secret@host/name",
            "postgresql://user:secret@host/name",
            "postgresql+asyncpg://user:secret@host/name",
            "sqlite+aiosqlite:///secret",
            "secret",
            "user:secret@host",
            "postgresql+psycopg://user:secret@host:secret/name",
            "postgresql+psycopg://user:pass@secret:secret@host/name",
        ],
    )
    def test_of_another_kind_is_refused_without_telling_its_password(self, url: str) -> None:
        with pytest.raises(ValidationError, match=r"expected sqlite:///FILE or postgresql\+psycopg://") as refusal:
            Settings(database_url=url)
        assert "secret" not in str(refusal.value)

    def test_is_shown_without_its_password(self) -> None:
        assert Settings(database_url=POSTGRES).shown_database == "postgresql+psycopg://user:***@host/name"


class TestSettings:
    def test_cannot_be_changed(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            Settings().port = 1  # type: ignore[misc]  # the point of the test
