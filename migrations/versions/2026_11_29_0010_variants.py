"""The variants of trials; and what is new in specs is taken out again on the way back.

Revision ID: 0010
Revises: 0009
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_SEARCHES = sa.table("searches", sa.column("id"), sa.column("spec", sa.JSON()))
_STUDIES = sa.table("studies", sa.column("id"), sa.column("spec", sa.JSON()))


def upgrade() -> None:
    """Apply."""
    op.add_column("trials", sa.Column("variant", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Undo."""
    connection = op.get_bind()
    for table in (_SEARCHES, _STUDIES):
        for row_id, spec in connection.execute(sa.select(table.c.id, table.c.spec)).all():
            connection.execute(table.update().where(table.c.id == row_id).values(spec=_in_old_words(spec)))
    op.drop_column("trials", "variant")


def _in_old_words(spec: dict[str, Any]) -> dict[str, Any]:
    new = {
        "proxy": {"thetas"},
        "reference": {"thetas"},
        "space": {"mixture", "groups", "axes", "ties"},
        "structures": {"spread"},
    }
    parts: dict[str, Any] = {
        part: _without(spec[part], names) for part, names in new.items() if isinstance(spec.get(part), dict)
    }
    if (space := parts.get("space")) and "constraints" in space:
        space["constraints"] = _without(space["constraints"], {"padding_max"})
    if (convergence := spec.get("convergence")) and convergence["patience"] is None:
        parts["convergence"] = None
    return {**spec, **parts}


def _without(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
