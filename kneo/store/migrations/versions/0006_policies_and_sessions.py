"""What is set over HTTP for a whole project, and which conversation a run belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "project_metadata",
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_project_metadata"),
    )
    op.add_column("runs", sa.Column("session_id", sa.String(200)))
    op.create_index("ix_runs_session_id_updated_at", "runs", ["session_id", "updated_at"])
