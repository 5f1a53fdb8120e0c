"""Studies and their parts; searches that wait for the learning rate of their proxy; the processor's seconds of a trial.

On the way back the searches of studies stay, as searches that train a plan; a search that still waits for a learning rate
gets the one that its proxy had when rates were not calibrated.
"""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SEARCHES = sa.table("searches", sa.column("id"), sa.column("spec", sa.JSON()), sa.column("task"))
_NEW_SETTINGS = ("base_width", "input_lr_mult", "warmup_steps", "weight_norm")
_NEW_VALUES = {
    kind: {"base_width": base_width, "input_lr_mult": input_lr_mult, "weight_norm": False}
    for kind, base_width, input_lr_mult in (
        ("char_lm", 32, 4.0),
        ("image_mlp", 64, 1.0),
        ("image_vit", 32, 4.0),
        ("next_pixel", 32, 4.0),
        ("regression", 64, 1.0),
    )
}
_CARRIED = ("dense_width", "width", "train_flops", "base_lr", "warmup_steps")
_OLD_RATES = {"char_lm": 5e-3, "image_mlp": 4e-3, "image_vit": 8e-3, "next_pixel": 5e-3, "regression": 5e-3}


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "studies",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("proxy", sa.String(length=32), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("finding", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
    )
    op.create_index("ix_studies_kind_created_at_id", "studies", ["kind", "created_at", "id"])
    op.create_index("ix_studies_kind_task", "studies", ["kind", "task"])
    op.create_index("ix_studies_kind_proxy", "studies", ["kind", "proxy"])
    op.create_index("ix_studies_state", "studies", ["state"])
    op.create_table(
        "study_parts",
        sa.Column("study_id", sa.String(length=32), nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("search_id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_study_parts_study_id_studies"),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name="fk_study_parts_search_id_searches"),
        sa.PrimaryKeyConstraint("study_id", "role", name="pk_study_parts"),
    )
    op.create_index("ix_study_parts_digest", "study_parts", ["digest"])
    with op.batch_alter_table("searches") as searches:
        searches.add_column(sa.Column("awaits_calibration", sa.Boolean(), nullable=False, server_default=sa.false()))
        searches.add_column(sa.Column("task", sa.String(length=32), nullable=False, server_default=""))
        searches.add_column(sa.Column("transfers", sa.JSON(), nullable=False, server_default="{}"))
        searches.add_column(sa.Column("calibration_id", sa.String(length=32), nullable=True))
    with op.batch_alter_table("searches") as searches:
        searches.alter_column("awaits_calibration", existing_type=sa.Boolean(), server_default=None)
        searches.alter_column("task", existing_type=sa.String(length=32), server_default=None)
        searches.alter_column("transfers", existing_type=sa.JSON(), server_default=None)
    op.create_index("ix_searches_task", "searches", ["task"])
    connection = op.get_bind()
    for search_id, spec in connection.execute(sa.select(_SEARCHES.c.id, _SEARCHES.c.spec)).all():
        statement = _SEARCHES.update().where(_SEARCHES.c.id == search_id)
        connection.execute(statement.values(task=_task({**_NEW_VALUES[spec["proxy"]["kind"]], **spec["proxy"]})))
    op.create_index("ix_searches_awaits_calibration", "searches", ["awaits_calibration"])
    op.add_column("trials", sa.Column("cpu_seconds", sa.Double(), nullable=True))
    op.add_column("trials", sa.Column("coordinates", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Undo."""
    op.drop_column("trials", "coordinates")
    op.drop_column("trials", "cpu_seconds")
    op.drop_index("ix_searches_awaits_calibration", "searches")
    op.drop_index("ix_searches_task", "searches")
    with op.batch_alter_table("searches") as searches:
        searches.drop_column("calibration_id")
        searches.drop_column("transfers")
        searches.drop_column("task")
        searches.drop_column("awaits_calibration")
    op.drop_table("study_parts")
    op.drop_table("studies")
    connection = op.get_bind()
    for search_id, spec in connection.execute(sa.select(_SEARCHES.c.id, _SEARCHES.c.spec)).all():
        statement = _SEARCHES.update().where(_SEARCHES.c.id == search_id)
        connection.execute(statement.values(spec=_in_old_words(spec)))


def _task(proxy: dict[str, Any]) -> str:
    settings = {name: value for name, value in proxy.items() if name not in _CARRIED}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def _in_old_words(spec: dict[str, Any]) -> dict[str, Any]:
    proxy = {name: value for name, value in spec["proxy"].items() if name not in _NEW_SETTINGS}
    if proxy["base_lr"] is None:
        proxy["base_lr"] = _OLD_RATES[proxy["kind"]]
    sampler = spec["sampler"]
    if sampler["kind"] == "plan":
        sampler = {**sampler, "runs": [_run_in_old_words(run, proxy) for run in sampler["runs"]]}
    return {**spec, "proxy": proxy, "sampler": sampler}


def _run_in_old_words(run: dict[str, Any], proxy: dict[str, Any]) -> dict[str, Any]:
    old = {name: value for name, value in run.items() if name != "lr_mult"}
    if run.get("lr_mult") is not None:
        old["base_lr"] = run["lr_mult"] * proxy["base_lr"]
    return old
