"""Indexes of the runs of a bundle and of a workflow with the environment; that of failed runs of an environment is not read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0025"
down_revision = "kneo_0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace two indexes, and remove one."""
    op.drop_index("ix_runs_environment_failed", "runs")
    for column in ("bundle", "workflow_name"):
        name, condition = f"ix_runs_{column}_updated_at", sa.text(f"{column} IS NOT NULL")
        op.drop_index(name, "runs")
        op.create_index(
            name,
            "runs",
            [column, "updated_at", "environment"],
            sqlite_where=condition,
            postgresql_where=condition,
        )
