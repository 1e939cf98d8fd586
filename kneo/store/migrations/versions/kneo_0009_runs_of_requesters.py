"""An index that leads to the runs of a person in the order of creation."""

from __future__ import annotations

from alembic import op

revision = "kneo_0009"
down_revision = "kneo_0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the index."""
    op.create_index("ix_runs_requester", "runs", ["requester", "created_at", "id"])
