"""Searches, trials, attempts, learning curves."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "searches",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("proxy_kind", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("waiting_for", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_searches")),
    )
    op.create_index(op.f("ix_searches_created_at_id"), "searches", ["created_at", "id"])
    op.create_index(op.f("ix_searches_proxy_kind"), "searches", ["proxy_kind"])
    op.create_index(op.f("ix_searches_state"), "searches", ["state"])

    op.create_table(
        "trials",
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("search_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("replicate", sa.Integer(), nullable=False),
        sa.Column("theta", sa.JSON(), nullable=False),
        sa.Column("family", sa.String(length=16), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=32), nullable=False),
        sa.Column("omega", sa.Double(), nullable=False),
        sa.Column("psi", sa.Double(), nullable=False),
        sa.Column("nu", sa.Double(), nullable=False),
        sa.Column("params", sa.BigInteger(), nullable=False),
        sa.Column("macs", sa.BigInteger(), nullable=False),
        sa.Column("train_flops", sa.Double(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("history_size", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("loss", sa.Double(), nullable=True),
        sa.Column("finish_order", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_trials_search_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trials")),
        sa.UniqueConstraint("search_id", "digest", "replicate", name=op.f("uq_trials_search_id_digest_replicate")),
        sa.UniqueConstraint("search_id", "number", name=op.f("uq_trials_search_id_number")),
    )
    op.create_index(op.f("ix_trials_family"), "trials", ["family"])
    op.create_index(op.f("ix_trials_loss"), "trials", ["loss"])
    op.create_index(op.f("ix_trials_macs"), "trials", ["macs"])
    op.create_index(op.f("ix_trials_nu"), "trials", ["nu"])
    op.create_index(op.f("ix_trials_omega"), "trials", ["omega"])
    op.create_index(op.f("ix_trials_params"), "trials", ["params"])
    op.create_index(op.f("ix_trials_psi"), "trials", ["psi"])
    op.create_index(op.f("ix_trials_search_id_loss"), "trials", ["search_id", "loss"])
    op.create_index(op.f("ix_trials_search_id_state"), "trials", ["search_id", "state"])

    op.create_table(
        "attempts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("trial_id", sa.String(length=48), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("slot", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_attempts_trial_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("trial_id", "number", name=op.f("uq_attempts_trial_id_number")),
    )
    op.create_index(op.f("ix_attempts_state"), "attempts", ["state"])

    op.create_table(
        "measurements",
        sa.Column("attempt_id", sa.String(length=64), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("train_flops", sa.Double(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name=op.f("fk_measurements_attempt_id")),
        sa.PrimaryKeyConstraint("attempt_id", "step", name=op.f("pk_measurements")),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("measurements")

    op.drop_table("attempts")

    op.drop_table("trials")

    op.drop_table("searches")
