"""The suspicion that a run ends its workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0018"
down_revision = "kneo_0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the column, and the index of the suspected runs."""
    op.add_column("runs", sa.Column("suspicion", sa.Integer(), nullable=False, server_default="0"))
    condition = sa.text("suspicion > 0")
    op.create_index("ix_runs_suspicion", "runs", ["suspicion"], sqlite_where=condition, postgresql_where=condition)
