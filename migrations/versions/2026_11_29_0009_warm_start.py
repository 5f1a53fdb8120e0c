"""Searches that start from earlier ones: what they have inherited, and the trials that took results over.

On the way back a result that was taken over is one that was trained, and paid for.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_SEARCHES = sa.table("searches", sa.column("id"), sa.column("spec", sa.JSON()), sa.column("train_flops"))
_TRIALS = sa.table("trials", sa.column("search_id"), sa.column("train_flops"), sa.column("reused_from"))


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "warm_starts",
        sa.Column("search_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("source_id", sa.String(length=32), nullable=False),
        sa.Column("num_finished", sa.Integer(), nullable=False),
        sa.Column("num_results", sa.Integer(), nullable=False),
        sa.Column("num_in_space", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name="fk_warm_starts_search_id_searches"),
        sa.ForeignKeyConstraint(["source_id"], ["searches.id"], name="fk_warm_starts_source_id_searches"),
        sa.PrimaryKeyConstraint("search_id", "number", name="pk_warm_starts"),
    )
    op.add_column("searches", sa.Column("num_reused", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("trials", sa.Column("reused_from", sa.String(length=48), nullable=True))


def downgrade() -> None:
    """Undo."""
    connection = op.get_bind()
    for search_id, spec, train_flops in connection.execute(sa.select(_SEARCHES)).all():
        known = {name: value for name, value in spec.items() if name != "warm_start"}
        each = spec["proxy"]["train_flops"]
        reused = sa.and_(_TRIALS.c.search_id == search_id, _TRIALS.c.reused_from.is_not(None))
        num_reused = connection.execute(_TRIALS.update().where(reused).values(train_flops=each)).rowcount
        statement = _SEARCHES.update().where(_SEARCHES.c.id == search_id)
        connection.execute(statement.values(spec=known, train_flops=train_flops + num_reused * each))
    op.drop_column("trials", "reused_from")
    op.drop_column("searches", "num_reused")
    op.drop_table("warm_starts")
