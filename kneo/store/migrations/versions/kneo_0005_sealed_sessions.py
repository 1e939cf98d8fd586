"""Sealed texts of sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0005"
down_revision = "kneo_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column of sealed texts."""
    for table in ("session_messages", "session_summaries"):
        op.add_column(table, sa.Column("sealed", sa.LargeBinary()))
