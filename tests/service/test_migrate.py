from pathlib import Path

import pytest
from sqlalchemy import inspect

from service import migrate
from service.database import Database
from service.settings import Settings
from tests.databases import Server


class TestUpgrade:
    def test_makes_the_schema_current(self, server: Server) -> None:
        with server.empty() as url:
            database = Database(url)
            assert not migrate.is_current(database)
            migrate.upgrade(url)
            assert migrate.is_current(database)
            database.close()

    def test_of_a_current_schema_does_nothing(self, database: Database, database_url: str) -> None:
        migrate.upgrade(database_url)
        assert migrate.is_current(database)


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def _environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EINSEARCH_HOME", str(tmp_path / "home"))

    def test_upgrades_the_database_of_the_environment_and_says_which(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with server.empty() as url:
            monkeypatch.setenv("EINSEARCH_DATABASE_URL", url)
            assert migrate.main(["upgrade"]) == 0
            database = Database(url)
            assert migrate.is_current(database)
            assert capsys.readouterr().out == f"database       {Settings(database_url=url).shown_database}\n"
            database.close()

    def test_makes_home_where_there_is_none(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert migrate.main(["upgrade"]) == 0
        assert capsys.readouterr().out.endswith(f"sqlite:///{tmp_path}/home/einsearch.db\n")
        assert (tmp_path / "home" / "einsearch.db").exists()

    def test_downgrades_to_nothing(
        self, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EINSEARCH_DATABASE_URL", database_url)
        assert migrate.main(["downgrade", "base"]) == 0
        assert inspect(database.engine).get_table_names() == ["alembic_version"]

    def test_checks_the_models_against_the_migrations(self) -> None:
        assert migrate.main(["check"]) == 0

    @pytest.mark.parametrize("arguments", [[], ["explode"], ["downgrade"], ["upgrade", "now"]])
    def test_explains_itself(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert migrate.main(arguments) == 2
        assert "python -m service.migrate upgrade | downgrade | check" in capsys.readouterr().err

    def test_tells_in_one_line_that_a_server_does_not_answer_and_keeps_the_password(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("EINSEARCH_DATABASE_URL", f"postgresql+psycopg://user:secret@/name?host={tmp_path}")
        assert migrate.main(["upgrade"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("cannot open the database postgresql+psycopg://user:***@/name?host=")
        assert "secret" not in said
        assert said.count("\n") == 1

    def test_tells_in_one_line_that_a_file_cannot_be_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("EINSEARCH_HOME", str(tmp_path / "file"))
        assert migrate.main(["upgrade"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("cannot open the database sqlite:///")
        assert said.count("\n") == 1

    def test_tells_that_the_settings_are_none(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("EINSEARCH_DATABASE_URL", "mysql://user:secret@host/name")
        assert migrate.main(["upgrade"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("settings: ")
        assert "expected sqlite:///FILE" in said
        assert "secret" not in said
