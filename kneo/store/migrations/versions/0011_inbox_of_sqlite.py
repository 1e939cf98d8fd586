"""The plain index of the inbox on SQLite, which would take one that begins with resolved_at for everything."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("ix_tasks_resolved_at_id_title", "tasks")
        op.create_index("ix_tasks_id_title", "tasks", ["id", "title"], sqlite_where=sa.text("resolved_at IS NULL"))
