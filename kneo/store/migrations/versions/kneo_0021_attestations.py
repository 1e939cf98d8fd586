"""Attestations: signed statements of facts about bundles, which evidence gates decide on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0021"
down_revision = "kneo_0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "attestations",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("subject", sa.String(71), nullable=False),
        sa.Column("type", sa.String(20), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("suite_digest", sa.String(71), nullable=False),
        sa.Column("environment", sa.String(200)),
        sa.Column("issued_at", sa.String(40), nullable=False),
        sa.Column("payload_digest", sa.String(71), nullable=False, unique=True),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("first_seen_at", sa.String(40), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("mac", sa.LargeBinary()),
    )
    op.create_index("ix_attestations_subject_issued_at", "attestations", ["subject", "issued_at"])
