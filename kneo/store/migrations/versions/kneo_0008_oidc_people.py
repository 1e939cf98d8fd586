"""People of an OpenID Connect issuer, and their groups."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0008"
down_revision = "kneo_0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "oidc_people",
        sa.Column("person_key", sa.String(200), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("issued_at", sa.String(40), nullable=False),
        sa.Column("seen_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "oidc_groups",
        sa.Column("person_key", sa.String(200), primary_key=True),
        sa.Column("name", sa.String(200), primary_key=True),
    )
    op.create_index("ix_oidc_groups_name", "oidc_groups", ["name"])
