"""Registries that are rebuilt from commits: whether one is, and what the commits qualified for which environment."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sources", sa.Column("rebuilding_since", sa.String(40)))
    op.create_table(
        "qualified_bundles",
        sa.Column("environment", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("environment", "digest", name="pk_qualified_bundles"),
    )
