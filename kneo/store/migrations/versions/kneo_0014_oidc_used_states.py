"""States of completed sign-ins; those that wait are kept by their browsers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0014"
down_revision = "kneo_0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table. The one of waiting sign-ins stays for processes of earlier versions."""
    op.create_table(
        "oidc_used_states",
        sa.Column("state_hash", sa.String(64), primary_key=True),
        sa.Column("used_at", sa.String(40), nullable=False),
    )
    op.create_index("ix_oidc_used_states_used_at", "oidc_used_states", ["used_at"])
