"""The learning rate of each trial, since those of a plan need not all have that of their search; and examples, which a
learning curve called tokens when text was all there was to train on.

On the way back a plan becomes a random search that has all of its trials: the old code has no plans. Events keep the words
that they were told in.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SEARCHES = sa.table("searches", sa.column("id"), sa.column("spec", sa.JSON()))
_TRIALS = sa.table("trials", sa.column("search_id"), sa.column("base_lr", sa.Double()))
_ATTEMPTS = sa.table("attempts", sa.column("id"), sa.column("late", sa.JSON(none_as_null=True)))


def upgrade() -> None:
    """Apply."""
    op.add_column("trials", sa.Column("base_lr", sa.Double(), nullable=True))
    connection = op.get_bind()
    for search_id, spec in connection.execute(sa.select(_SEARCHES.c.id, _SEARCHES.c.spec)).all():
        statement = _TRIALS.update().where(_TRIALS.c.search_id == search_id)
        connection.execute(statement.values(base_lr=spec["proxy"]["base_lr"]))
    with op.batch_alter_table("trials") as trials:
        trials.alter_column("base_lr", existing_type=sa.Double(), nullable=False)
    op.alter_column("measurements", "tokens", new_column_name="examples")
    _rename_in_late_curves("tokens", "examples")


def downgrade() -> None:
    """Undo."""
    _rename_in_late_curves("examples", "tokens")
    op.alter_column("measurements", "examples", new_column_name="tokens")
    with op.batch_alter_table("trials") as trials:
        trials.drop_column("base_lr")
    connection = op.get_bind()
    num_trials = sa.select(sa.func.count()).where(_TRIALS.c.search_id == _SEARCHES.c.id).scalar_subquery()
    for search_id, spec, number in connection.execute(sa.select(_SEARCHES.c.id, _SEARCHES.c.spec, num_trials)).all():
        if spec["sampler"]["kind"] == "plan":
            statement = _SEARCHES.update().where(_SEARCHES.c.id == search_id)
            connection.execute(statement.values(spec=_without_plan(spec, number)))


def _rename_in_late_curves(old: str, new: str) -> None:
    connection = op.get_bind()
    query = sa.select(_ATTEMPTS.c.id, _ATTEMPTS.c.late).where(_ATTEMPTS.c.late.is_not(None))
    for attempt_id, late in connection.execute(query).all():
        if late is not None:
            curve = [{new if name == old else name: value for name, value in point.items()} for point in late["curve"]]
            statement = _ATTEMPTS.update().where(_ATTEMPTS.c.id == attempt_id)
            connection.execute(statement.values(late={**late, "curve": curve}))


def _without_plan(spec: dict[str, Any], num_trials: int) -> dict[str, Any]:
    sampler = {"kind": "random", "seed": spec["sampler"]["seed"]}
    return {**spec, "sampler": sampler, "budget": {**spec["budget"], "max_trials": max(1, num_trials)}}
