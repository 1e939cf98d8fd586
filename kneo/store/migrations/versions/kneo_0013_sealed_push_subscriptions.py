"""Sealed addresses and keys of push subscriptions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0013"
down_revision = "kneo_0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column of what is sealed. Subscriptions that exist stay as they are until the browser subscribes again."""
    op.add_column("push_subscriptions", sa.Column("sealed", sa.LargeBinary()))
