"""An index of the structures that have replicates; and races are taken out of specs on the way back.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_SEARCHES = sa.table("searches", sa.column("id"), sa.column("spec", sa.JSON()))


def upgrade() -> None:
    """Apply."""
    op.create_index(
        "ix_results_with_replicates",
        "results",
        ["search_id", "loss_mean", "digest"],
        sqlite_where=sa.text("num_trials > 1"),
        postgresql_where=sa.text("num_trials > 1"),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_index("ix_results_with_replicates", "results")
    connection = op.get_bind()
    for row_id, spec in connection.execute(sa.select(_SEARCHES.c.id, _SEARCHES.c.spec)).all():
        known = {name: value for name, value in spec.items() if name != "racing"}
        connection.execute(_SEARCHES.update().where(_SEARCHES.c.id == row_id).values(spec=known))
