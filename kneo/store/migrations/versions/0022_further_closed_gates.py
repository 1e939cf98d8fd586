"""Further gates that are closed for a pending change, each with its reason."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("pending_releases", sa.Column("also", sa.JSON()))
