"""Links to answer human tasks with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "task_links",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("run_id", sa.String(40), nullable=False),
        sa.Column("person", sa.String(200), nullable=False),
        sa.Column("subject_digest", sa.String(71), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("expires_at", sa.String(40), nullable=False),
        sa.Column("used_at", sa.String(40)),
        sa.PrimaryKeyConstraint("id", name="pk_task_links"),
        sa.UniqueConstraint("token_hash", name="uq_task_links_token_hash"),
    )
    op.create_index("ix_task_links_task_id", "task_links", ["task_id"])
    op.create_index("ix_task_links_run_id", "task_links", ["run_id"])
