"""The schema of the database: ``python -m service.migrate upgrade | downgrade | check | revision MESSAGE``."""

import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

import migrations
from service.database import Database
from service.settings import Settings


def configuration(url: str) -> Config:
    """Alembic's configuration for the database at ``url``."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["url"] = url
    return config


def upgrade(url: str) -> None:
    """Bring the schema to its newest revision."""
    command.upgrade(configuration(url), "head")


def is_current(database: Database) -> bool:
    """Whether the schema is the one that this code was written for."""
    head = ScriptDirectory.from_config(configuration("")).get_current_head()
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head


def check(url: str) -> None:
    """Compare the tables of ``service.models`` with those that the migrations make.

    Raises:
        alembic.util.CommandError: they differ.
    """
    command.upgrade(configuration(url), "head")
    command.check(configuration(url))


def main(arguments: list[str]) -> int:
    """The command line; the status to exit with."""
    match arguments:
        case ["upgrade"]:
            return _upgrade_from_environment()
        case ["downgrade", revision]:
            command.downgrade(configuration(Settings().database), revision)
        case ["revision", message]:
            with tempfile.TemporaryDirectory() as folder:
                config = configuration(f"sqlite:///{folder}/check.db")
                command.upgrade(config, "head")
                command.revision(config, message, autogenerate=True)
        case ["check"]:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    check(f"sqlite:///{folder}/check.db")
                except CommandError as error:
                    print(f"migrations: {error}", file=sys.stderr)
                    return 1
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


def _upgrade_from_environment() -> int:
    try:
        settings = Settings()
        Database(settings.database).close()  # makes the folder of an SQLite file
        upgrade(settings.database)
    except ValidationError as error:
        print(f"settings: {error}", file=sys.stderr)
        return 1
    except (OperationalError, OSError) as error:
        reason = str(error.orig if isinstance(error, OperationalError) else error).strip().splitlines()[0]
        print(f"cannot open the database {settings.shown_database}: {reason}", file=sys.stderr)
        return 1
    print(f"database       {settings.shown_database}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
