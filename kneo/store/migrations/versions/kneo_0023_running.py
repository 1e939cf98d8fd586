"""The index of running runs by environment, for turns of environments and their quotas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0023"
down_revision = "kneo_0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the index."""
    condition = sa.text("status = 'running'")
    columns = ["environment", "owner", "id"]
    op.create_index("ix_runs_running", "runs", columns, sqlite_where=condition, postgresql_where=condition)
