"""Indexes for every order of the inbox, and none with titles on PostgreSQL, which refuses long ones."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

UNANSWERED = sa.text("resolved_at IS NULL")
NEVER = "9999-12-31T23:59:59.999999+00:00"
FILTERED = (
    "status",
    "kind",
    "environment",
    "workflow_name",
    "workflow_type",
    "step_id",
    "assignee",
    "claimed_by",
    "escalation",
    "restricted",
    "due_at",
    "resolved_at",
)
ORDERS = ("priority", "due_at", "deadline_at")


def upgrade() -> None:
    for name in ("due_at", "deadline_at"):
        op.execute(f"UPDATE tasks SET {name} = '{NEVER}' WHERE {name} IS NULL AND resolved_at IS NULL")  # noqa: S608 - two names of columns
    if op.get_bind().dialect.name == "sqlite":
        for name in ("id_title", "priority_id", "due_at_id"):
            op.drop_index(f"ix_tasks_{name}", "tasks")
        _index("inbox_id", "id", "title", *FILTERED)
        for column in ORDERS:
            _index(f"inbox_{column}", column, "id", *(name for name in FILTERED if name != column))
    else:
        op.drop_index("ix_tasks_resolved_at_id_title", "tasks")
        _index("resolved_at_id", "resolved_at", "id")
        _index("workflow_type_resolved_at_id", "workflow_type", "resolved_at", "id")
        _index("deadline_at_id", "deadline_at", "id")


def _index(name: str, *columns: str) -> None:
    op.create_index(f"ix_tasks_{name}", "tasks", list(columns), sqlite_where=UNANSWERED, postgresql_where=UNANSWERED)
