"""Leases, owners, events, results, keys and webhooks; and of each search what was counted anew with every look.

Rows are carried over: what new columns say of old rows is computed from them. The way back forgets what the old code has
no place for, and says the rest in its words.
"""

from collections import defaultdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS = {
    "searches": (
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("state_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pause_mode", sa.String(length=32), nullable=True),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("best_loss", sa.Double(), nullable=True),
        sa.Column("train_flops", sa.Double(), nullable=False),
        sa.Column("num_retries", sa.Integer(), nullable=False),
        sa.Column("seconds_before", sa.Double(), nullable=False),
        sa.Column("last_event", sa.BigInteger(), nullable=False),
        sa.Column("runner_id", sa.String(length=32), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
    ),
    "trials": (
        sa.Column("origin", sa.String(length=32), nullable=False),
        sa.Column("state_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("alone", sa.Boolean(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("excluded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("excluded_reason", sa.Text(), nullable=True),
    ),
    "attempts": (
        sa.Column("runner_id", sa.String(length=32), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("resumed_step", sa.Integer(), nullable=True),
        sa.Column("late", sa.JSON(), nullable=True),
        sa.Column("late_at", sa.DateTime(timezone=True), nullable=True),
    ),
}

_METRICS = ("loss", "omega", "psi", "nu", "params", "macs")
_OLD_INDEXES = (
    *(("trials", (metric,)) for metric in _METRICS),
    ("trials", ("search_id", "loss")),
    ("trials", ("search_id", "state")),
)
_NEW_INDEXES = (
    ("searches", ("owner", "created_at", "id")),
    ("searches", ("runner_id",)),
    ("trials", ("search_id", "changed")),
    ("trials", ("search_id", "state", "number")),
    *(("trials", (metric, "id")) for metric in (*_METRICS, "seconds")),
    *(("trials", ("search_id", metric, "number")) for metric in (*_METRICS, "seconds")),
)
_FILTERED = ("omega", "psi", "nu", "params", "macs", "family", "origin")
_CARRIED = {("search_id", "loss", "number"): _FILTERED, ("loss", "id"): ("search_id", *_FILTERED)}


def _table(name: str, *old: sa.ColumnClause[Any]) -> sa.TableClause:
    """A table as far as the rows that are carried over need it."""
    return sa.table(name, *old, *(sa.column(column.name, column.type) for column in _COLUMNS[name]))


_SEARCHES = _table(
    "searches",
    sa.column("id"),
    sa.column("spec", sa.JSON()),
    sa.column("state"),
    sa.column("reason"),
    sa.column("created_at", sa.DateTime(timezone=True)),
    sa.column("started_at", sa.DateTime(timezone=True)),
    sa.column("finished_at", sa.DateTime(timezone=True)),
)
_TRIALS = _table(
    "trials",
    *(sa.column(name) for name in ("id", "search_id", "number", "digest", "state", "created_at", "finished_at")),
    sa.column("train_flops", sa.Double()),
    sa.column("loss", sa.Double()),
)
_ATTEMPTS = _table("attempts", *(sa.column(name) for name in ("trial_id", "state")), sa.column("seconds", sa.Double()))
_RESULTS = sa.table(
    "results",
    *(sa.column(name) for name in ("search_id", "digest", "trial_id", "num_trials", "loss_mean", "loss_m2", "changed")),
)


_GROUPS = (
    sa.select(
        _TRIALS.c.search_id,
        _TRIALS.c.state,
        sa.func.count().label("num_trials"),
        sa.func.sum(_TRIALS.c.train_flops).label("train_flops"),
        sa.func.min(_TRIALS.c.loss).label("best_loss"),
    )
    .group_by(_TRIALS.c.search_id, _TRIALS.c.state)
    .order_by(_TRIALS.c.search_id, _TRIALS.c.state)
)
_RETRIES = (
    sa.select(_TRIALS.c.search_id, sa.func.count().label("num_retries"))
    .join_from(_ATTEMPTS, _TRIALS, _ATTEMPTS.c.trial_id == _TRIALS.c.id)
    .where(_ATTEMPTS.c.state == "LOST")
    .group_by(_TRIALS.c.search_id)
)


def upgrade() -> None:
    """Apply."""
    _create_tables()
    for table, columns in _OLD_INDEXES:
        op.drop_index(_index(table, columns), table)
    for table, added in _COLUMNS.items():
        for column in added:
            op.add_column(table, sa.Column(column.name, column.type, nullable=True))
    _fill_attempts()
    _fill_trials()
    _fill_searches()
    _fill_results()
    for table, added in _COLUMNS.items():
        with op.batch_alter_table(table) as batch:
            for column in added:
                if not column.nullable:
                    batch.alter_column(column.name, existing_type=column.type, nullable=False)
    for table, columns in _NEW_INDEXES:
        op.create_index(_index(table, columns), table, [*columns, *_CARRIED.get(columns, ())])


def downgrade() -> None:
    """Undo."""
    _forget_states()
    _forget_reasons()
    _forget_budgets()
    for table, columns in _NEW_INDEXES:
        op.drop_index(_index(table, columns), table)
    for table, added in _COLUMNS.items():
        with op.batch_alter_table(table) as batch:
            for column in added:
                batch.drop_column(column.name)
    for table, columns in _OLD_INDEXES:
        op.create_index(_index(table, columns), table, columns)
    for table in (
        "results",
        "deliveries",
        "webhooks",
        "pareto_fronts",
        "events",
        "runners",
        "idempotency_keys",
        "api_keys",
    ):
        op.drop_table(table)


def _index(table: str, columns: tuple[str, ...]) -> str:
    return op.f(f"ix_{table}_{'_'.join(columns)}")


def _create_tables() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("max_active_searches", sa.Integer(), nullable=True),
        sa.Column("max_train_flops_per_day", sa.Double(), nullable=True),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index(op.f("ix_api_keys_owner"), "api_keys", ["owner"])

    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("location", sa.String(length=200), nullable=True),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"])

    op.create_table(
        "runners",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stats", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runners")),
    )
    op.create_index(op.f("ix_runners_expires_at"), "runners", ["expires_at"])

    op.create_table(
        "events",
        sa.Column("search_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("trial_id", sa.String(length=48), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_events_search_id")),
        sa.PrimaryKeyConstraint("search_id", "number", name=op.f("pk_events")),
    )

    op.create_table(
        "pareto_fronts",
        sa.Column("search_id", sa.String(length=32), nullable=False),
        sa.Column("metrics", sa.String(length=200), nullable=False),
        sa.Column("seen", sa.BigInteger(), nullable=False),
        sa.Column("digests", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_pareto_fronts_search_id")),
        sa.PrimaryKeyConstraint("search_id", "metrics", name=op.f("pk_pareto_fronts")),
    )

    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("url", sa.String(length=2000), nullable=False),
        sa.Column("secret", sa.String(length=100), nullable=False),
        sa.Column("search_id", sa.String(length=32), nullable=True),
        sa.Column("kinds", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_webhooks_search_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index(op.f("ix_webhooks_owner"), "webhooks", ["owner"])

    op.create_table(
        "deliveries",
        sa.Column("webhook_id", sa.String(length=32), nullable=False),
        sa.Column("search_id", sa.String(length=32), nullable=False),
        sa.Column("delivered", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_deliveries_search_id")),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name=op.f("fk_deliveries_webhook_id")),
        sa.PrimaryKeyConstraint("webhook_id", "search_id", name=op.f("pk_deliveries")),
    )

    op.create_table(
        "results",
        sa.Column("search_id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=32), nullable=False),
        sa.Column("trial_id", sa.String(length=48), nullable=False),
        sa.Column("num_trials", sa.Integer(), nullable=False),
        sa.Column("loss_mean", sa.Double(), nullable=False),
        sa.Column("loss_m2", sa.Double(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_results_search_id")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_results_trial_id")),
        sa.PrimaryKeyConstraint("search_id", "digest", name=op.f("pk_results")),
    )
    op.create_index(op.f("ix_results_search_id_changed"), "results", ["search_id", "changed"])
    op.create_index(op.f("ix_results_search_id_loss_mean_digest"), "results", ["search_id", "loss_mean", "digest"])


def _fill_attempts() -> None:
    op.execute(_ATTEMPTS.update().values(runner_id="", epoch=0))


def _fill_trials() -> None:
    # The state as a case, not as a condition: SQLite would look up all attempts that ended, for each trial.
    ended = sa.case((_ATTEMPTS.c.state == "ENDED", _ATTEMPTS.c.seconds))
    seconds = sa.select(sa.func.max(ended)).where(_ATTEMPTS.c.trial_id == _TRIALS.c.id)
    op.execute(
        _TRIALS.update().values(
            origin="SEARCH",
            state_since=sa.func.coalesce(_TRIALS.c.finished_at, _TRIALS.c.created_at),
            changed=0,
            alone=sa.false(),
            seconds=seconds.scalar_subquery(),
        )
    )


def _fill_searches() -> None:
    _update_each_search(
        _SEARCHES.update().values(
            owner="local",
            state_since=sa.func.coalesce(_SEARCHES.c.finished_at, _SEARCHES.c.started_at, _SEARCHES.c.created_at),
            pause_mode=sa.case((_SEARCHES.c.state == "PAUSED", "DRAIN")),
            last_event=0,
            epoch=0,
        ),
        _totals(),
    )


def _totals() -> list[dict[str, Any]]:
    """What is known of each search. What is below them is read once and grouped: looking it up search by search is slow."""
    connection = op.get_bind()
    groups = defaultdict(list)
    for row in connection.execute(_GROUPS):
        groups[row.search_id].append(row)
    retries = {row.search_id: row.num_retries for row in connection.execute(_RETRIES)}
    return [
        {
            "of": search_id,
            "counts": {row.state: row.num_trials for row in groups[search_id]},
            "best_loss": min((row.best_loss for row in groups[search_id] if row.best_loss is not None), default=None),
            "train_flops": sum((row.train_flops for row in groups[search_id]), 0.0),
            "num_retries": retries.get(search_id, 0),
            "seconds_before": _seconds(started_at, finished_at),
        }
        for search_id, started_at, finished_at in connection.execute(
            sa.select(_SEARCHES.c.id, _SEARCHES.c.started_at, _SEARCHES.c.finished_at)
        )
    ]


def _seconds(started_at: datetime | None, finished_at: datetime | None) -> float:
    return (finished_at - started_at).total_seconds() if started_at and finished_at else 0.0


def _fill_results() -> None:
    completed = _TRIALS.c.state == "COMPLETED"
    structures = (
        sa.select(
            _TRIALS.c.search_id,
            _TRIALS.c.digest,
            sa.func.min(_TRIALS.c.number).label("first"),
            sa.func.avg(_TRIALS.c.loss).label("mean"),
        )
        .where(completed)
        .group_by(_TRIALS.c.search_id, _TRIALS.c.digest)
        .subquery()
    )
    deviation = _TRIALS.c.loss - structures.c.mean
    results = (
        sa.select(
            structures.c.search_id,
            structures.c.digest,
            sa.func.max(sa.case((_TRIALS.c.number == structures.c.first, _TRIALS.c.id))),
            sa.func.count(),
            structures.c.mean,
            sa.func.sum(deviation * deviation),
            sa.literal(0),
        )
        .join_from(
            structures,
            _TRIALS,
            sa.and_(_TRIALS.c.search_id == structures.c.search_id, _TRIALS.c.digest == structures.c.digest, completed),
        )
        .group_by(structures.c.search_id, structures.c.digest, structures.c.mean)
    )
    op.execute(_RESULTS.insert().from_select([column.name for column in _RESULTS.c], results))


def _forget_states() -> None:
    op.execute(_ATTEMPTS.update().where(_ATTEMPTS.c.state.in_(["OUT_OF_MEMORY", "CHECKPOINTED"])).values(state="LOST"))


def _forget_reasons() -> None:
    # To the old code a reason is that of an end: a search that goes on with one would end for it.
    goes_on = _SEARCHES.c.state.in_(["QUEUED", "RUNNING", "PAUSED"])
    op.execute(_SEARCHES.update().where(goes_on, _SEARCHES.c.reason != "SPACE_EXHAUSTED").values(reason=None))
    spent = _SEARCHES.c.reason.in_(["BUDGET_SECONDS", "BUDGET_TRAIN_FLOPS"])
    op.execute(_SEARCHES.update().where(spent).values(reason="BUDGET_TRIALS"))
    op.execute(_SEARCHES.update().where(_SEARCHES.c.reason == "TOO_MANY_FAILURES").values(reason="USER"))


def _forget_budgets() -> None:
    """A budget without a number of trials becomes that of the trials that there are."""
    connection = op.get_bind()
    num_trials = sa.select(sa.func.count()).where(_TRIALS.c.search_id == _SEARCHES.c.id).scalar_subquery()
    _update_each_search(
        _SEARCHES.update(),
        [
            {"of": search_id, "spec": {**spec, "budget": {"max_trials": spec["budget"].get("max_trials") or num or 1}}}
            for search_id, spec, num in connection.execute(sa.select(_SEARCHES.c.id, _SEARCHES.c.spec, num_trials))
        ],
    )


def _update_each_search(statement: sa.Update, values: list[dict[str, Any]]) -> None:
    """Set what ``statement`` sets, and for each search what its dictionary says; ``of`` is its id."""
    if values:
        op.get_bind().execute(statement.where(_SEARCHES.c.id == sa.bindparam("of")), values)
