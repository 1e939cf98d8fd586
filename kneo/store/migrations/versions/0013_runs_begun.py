"""Runs in the order in which they were begun."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_runs_begun", "runs", ["created_at", "id", "environment", "bundle", "target", "workflow_name"])
