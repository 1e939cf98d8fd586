"""Indexes of the inbox in the order in which it is listed, so that what was answered before does not slow it down."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

UNANSWERED = sa.text("resolved_at IS NULL")
GONE = ("id_title", "kind_id", "environment_id", "workflow_name_id", "step_id_id", "assignee_id", "claimed_by_id")
NEW = (
    ("resolved_at", "id", "title"),
    ("kind", "resolved_at", "id"),
    ("environment", "resolved_at", "id"),
    ("workflow_name", "resolved_at", "id"),
    ("step_id", "resolved_at", "id"),
    ("assignee", "resolved_at", "id"),
    ("claimed_by", "resolved_at", "id"),
    ("status", "resolved_at", "id"),
)


def upgrade() -> None:
    for name in GONE:
        op.drop_index(f"ix_tasks_{name}", "tasks")
    for columns in NEW:
        name = f"ix_tasks_{'_'.join(columns)}"
        op.create_index(name, "tasks", list(columns), sqlite_where=UNANSWERED, postgresql_where=UNANSWERED)
