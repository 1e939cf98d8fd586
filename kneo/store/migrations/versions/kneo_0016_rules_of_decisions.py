"""Whether people approved the rules of an environment."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0016"
down_revision = "kneo_0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the column."""
    op.add_column("environments", sa.Column("policy_approved", sa.Boolean()))
