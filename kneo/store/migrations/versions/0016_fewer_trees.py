"""Fewer trees to write: for runs without a deadline and tasks that nobody has; on SQLite for all of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

CHOSEN_BY = ("kind", "environment", "workflow_name", "step_id", "status")
PEOPLE = ("assignee", "claimed_by")


def upgrade() -> None:
    _again("runs", ["status", "deadline_at"], "deadline_at IS NOT NULL")
    for column in PEOPLE:
        _again("tasks", [column, "resolved_at", "id"], f"resolved_at IS NULL AND {column} IS NOT NULL")
    if op.get_bind().dialect.name != "sqlite":
        return
    for column in CHOSEN_BY:
        op.drop_index(f"ix_tasks_{column}_resolved_at_id", "tasks")
    _in_one_tree(
        "audit_pending",
        sa.Column("event_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_audit_pending"),
    )
    _in_one_tree(
        "task_tallies",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("environment", sa.String(200)),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("escalated", sa.Boolean(), nullable=False),
        sa.Column("amount", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_task_tallies"),
    )


def _again(table: str, columns: list[str], where: str) -> None:
    name = f"ix_{table}_{'_'.join(columns)}"
    op.drop_index(name, table)
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _in_one_tree(table: str, *columns: sa.Column[object] | sa.PrimaryKeyConstraint) -> None:
    op.rename_table(table, f"{table}_before")
    op.create_table(table, *columns, sqlite_with_rowid=False)
    op.execute(f"INSERT INTO {table} SELECT * FROM {table}_before")  # noqa: S608 - our own names
    op.drop_table(f"{table}_before")
