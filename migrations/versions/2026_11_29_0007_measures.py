"""What a training step costs on its device: latency and peak memory of trials; and searches that minimise them do not on the
way back.

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
_COLUMNS: dict[str, Any] = {"latency": sa.Double(), "peak_memory": sa.BigInteger()}


def upgrade() -> None:
    """Apply."""
    for name, kind in _COLUMNS.items():
        op.add_column("trials", sa.Column(name, kind, nullable=True))
        op.create_index(f"ix_trials_search_id_{name}_number", "trials", ["search_id", name, "number"])
        op.create_index(f"ix_trials_{name}_id", "trials", [name, "id"])


def downgrade() -> None:
    """Undo."""
    connection = op.get_bind()
    for search_id, spec in connection.execute(sa.select(_SEARCHES.c.id, _SEARCHES.c.spec)).all():
        connection.execute(_SEARCHES.update().where(_SEARCHES.c.id == search_id).values(spec=_in_old_words(spec)))
    for name in _COLUMNS:
        op.drop_index(f"ix_trials_{name}_id", "trials")
        op.drop_index(f"ix_trials_search_id_{name}_number", "trials")
        op.drop_column("trials", name)


def _in_old_words(spec: dict[str, Any]) -> dict[str, Any]:
    known = [objective for objective in spec["objectives"] if objective["metric"] not in _COLUMNS]
    return {**spec, "objectives": known}
