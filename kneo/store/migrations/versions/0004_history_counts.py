"""How long each part of a run's history is, so that nobody has to look for its end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COUNTED = {"step_count": "steps", "checkpoint_count": "checkpoints", "trace_count": "trace_events"}


def upgrade() -> None:
    for column, table in COUNTED.items():
        op.add_column("runs", sa.Column(column, sa.Integer(), nullable=False, server_default="0"))
        last = f"SELECT coalesce(max(h.sequence), 0) FROM {table} h WHERE h.run_id = runs.id"  # noqa: S608 - our own names
        op.execute(f"UPDATE runs SET {column} = ({last})")  # noqa: S608 - our own names
