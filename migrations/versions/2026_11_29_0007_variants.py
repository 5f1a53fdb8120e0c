"""The variants of trials; and what is new in specs is taken out again on the way back.

Revision ID: 0007
Revises: 0006
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SEARCHES = sa.table("searches", sa.column("id"), sa.column("spec", sa.JSON()))


def upgrade() -> None:
    """Apply."""
    op.add_column("trials", sa.Column("variant", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Undo."""
    connection = op.get_bind()
    for search_id, spec in connection.execute(sa.select(_SEARCHES.c.id, _SEARCHES.c.spec)).all():
        statement = _SEARCHES.update().where(_SEARCHES.c.id == search_id)
        connection.execute(statement.values(spec=_in_old_words(spec)))
    op.drop_column("trials", "variant")


def _in_old_words(spec: dict[str, Any]) -> dict[str, Any]:
    space = {name: value for name, value in spec.get("space", {}).items() if name != "mixture"}
    return {**spec, "space": space}
