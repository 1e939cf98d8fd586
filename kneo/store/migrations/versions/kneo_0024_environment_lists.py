"""Indexes of the lists of some environments, with the columns by which such lists are filtered and counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0024"
down_revision = "kneo_0023"
branch_labels = None
depends_on = None

REPLACED = (
    ("ix_runs_environment_updated_at", "runs", ["environment", "updated_at", "id", "status"], "environment"),
    ("ix_audit_events_environment_id", "audit_events", ["environment", "id", "event_type", "actor"], "environment"),
)
NEW = (
    ("ix_runs_environment_created_at", "runs", ["environment", "created_at", "id", "status"], "environment"),
    ("ix_runs_environment_failed", "runs", ["environment", "updated_at", "id"], "error"),
)


def upgrade() -> None:
    """Replace two indexes, and create two."""
    for name, table, _, _ in REPLACED:
        op.drop_index(name, table)
    for name, table, columns, present in (*REPLACED, *NEW):
        condition = sa.text(f"{present} IS NOT NULL")
        op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
