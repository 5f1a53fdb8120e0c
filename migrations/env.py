"""Runs the migrations on one connection."""

from alembic import context
from sqlalchemy import create_engine, event

from service.models import Base
from service.settings import Settings


def run() -> None:
    """Migrate the database that was configured, or the one of the environment when alembic itself is called."""
    engine = create_engine(context.config.attributes.get("url") or Settings().database)
    if engine.dialect.name == "sqlite":
        # Python's driver commits before a DDL statement; and a migration that is killed must leave nothing.
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.connect() as connection:
        # SQLite cannot alter a table in place; batch mode copies it.
        context.configure(
            connection=connection, target_metadata=Base.metadata, render_as_batch=True, transactional_ddl=True
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
