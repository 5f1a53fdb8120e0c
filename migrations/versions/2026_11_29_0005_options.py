"""Options of proxies: mixtures of experts, aligned heads, a depth rule, a seed of the data; and the spread of compute that a
fidelity study finds.

Nothing is to be done on the way up: what is not asked for is not written. On the way back options are forgotten, because
the code before would refuse to read them.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SEARCHES = sa.table("searches", sa.column("id"), sa.column("spec", sa.JSON()))
_STUDIES = sa.table("studies", sa.column("id"), sa.column("spec", sa.JSON()), sa.column("finding", sa.JSON()))
_OPTIONS = frozenset({"base_depth", "data_seed", "head_aligned_rank", "mixture"})
_FOUND = frozenset({"compute_spread"})


def upgrade() -> None:
    """Apply."""


def downgrade() -> None:
    """Undo."""
    connection = op.get_bind()
    for search_id, spec in connection.execute(sa.select(_SEARCHES.c.id, _SEARCHES.c.spec)).all():
        statement = _SEARCHES.update().where(_SEARCHES.c.id == search_id)
        connection.execute(statement.values(spec=_in_old_words(spec)))
    for study_id, spec, finding in connection.execute(sa.select(*_STUDIES.c)).all():
        statement = _STUDIES.update().where(_STUDIES.c.id == study_id)
        found = None if finding is None else _without(finding, _FOUND)
        connection.execute(statement.values(spec=_in_old_words(spec), finding=sa.null() if found is None else found))


def _in_old_words(spec: dict[str, Any]) -> dict[str, Any]:
    proxies = {name: spec[name] for name in ("proxy", "reference") if spec.get(name) is not None}
    return {**spec, **{name: _without(proxy, _OPTIONS) for name, proxy in proxies.items()}}


def _without(values: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
