"""Subscriptions of browsers to Web Push."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0011"
down_revision = "kneo_0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "push_subscriptions",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("browser_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("session_hash", sa.String(64), nullable=False),
        sa.Column("person_key", sa.String(200), nullable=False),
        sa.Column("person", sa.String(200), nullable=False),
        sa.Column("key_hash", sa.String(64)),
        sa.Column("endpoint_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("endpoint", sa.String(2000), nullable=False),
        sa.Column("p256dh", sa.String(100), nullable=False),
        sa.Column("auth", sa.String(100), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    op.create_index("ix_push_subscriptions_person_key", "push_subscriptions", ["person_key", "id"])
    op.create_index("ix_push_subscriptions_session_hash", "push_subscriptions", ["session_hash"])
