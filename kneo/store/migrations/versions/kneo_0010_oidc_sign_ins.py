"""Sign-ins to the console that wait for an answer of the OpenID Connect issuer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0010"
down_revision = "kneo_0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "oidc_sign_ins",
        sa.Column("state_hash", sa.String(64), primary_key=True),
        sa.Column("browser_hash", sa.String(64), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("code_verifier", sa.String(64), nullable=False),
        sa.Column("target", sa.String(2000), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
