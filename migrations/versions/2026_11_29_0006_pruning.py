"""The loss that a pruned trial would have had; and what is new in specs is taken out again on the way back.

Revision ID: 0006
Revises: 0005
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_SEARCHES = sa.table("searches", sa.column("id"), sa.column("spec", sa.JSON()))
_STUDIES = sa.table("studies", sa.column("id"), sa.column("spec", sa.JSON()))


def upgrade() -> None:
    """Apply."""
    op.add_column("trials", sa.Column("expected_loss", sa.Double(), nullable=True))


def downgrade() -> None:
    """Undo."""
    connection = op.get_bind()
    for table in (_SEARCHES, _STUDIES):
        for row_id, spec in connection.execute(sa.select(table.c.id, table.c.spec)).all():
            connection.execute(table.update().where(table.c.id == row_id).values(spec=_in_old_words(spec)))
    op.drop_column("trials", "expected_loss")


def _in_old_words(spec: dict[str, Any]) -> dict[str, Any]:
    proxies = {name: _of_one_output(spec[name]) for name in ("proxy", "reference") if spec.get(name) is not None}
    pruner = {"pruner": {"kind": "none"}} if "pruner" in spec else {}
    known = {name: value for name, value in spec.items() if name != "convergence"}
    return {**known, **proxies, **pruner}


def _of_one_output(proxy: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in proxy.items() if name != "outputs"}
