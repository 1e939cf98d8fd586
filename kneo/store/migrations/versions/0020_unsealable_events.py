"""Waiting audit events that cannot be sealed are marked, so that they do not stand before the others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "audit_pending", sa.Column("unsealable", sa.Boolean(), nullable=False, server_default=sa.text("false"))
    )
