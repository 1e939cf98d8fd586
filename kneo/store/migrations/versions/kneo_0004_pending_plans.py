"""The plans of pending changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0004"
down_revision = "kneo_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "pending_plans",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("environment", sa.String(200), nullable=False),
        sa.Column("base", sa.String(71)),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
    )
    op.create_index("ix_pending_plans_environment", "pending_plans", ["environment"])
