"""Approved rules, the files that decisions name, rejections that approved rules ended, and approvals that count no longer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0016"
down_revision = "kneo_0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create table and columns. A file is kept when another one replaces it, so that earlier ones are not known."""
    op.create_table(
        "environment_files",
        sa.Column("environment", sa.String(200), nullable=False),
        sa.Column("policy_digest", sa.String(71), nullable=False),
        sa.Column("declaration", sa.LargeBinary(), nullable=False),
        sa.Column("replaced_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("environment", "policy_digest"),
    )
    op.add_column("environments", sa.Column("policy_approved", sa.Boolean()))
    op.add_column("approvals", sa.Column("overruled_by", sa.String(71)))
    op.add_column("pending_releases", sa.Column("outdated_approvals", sa.JSON()))
