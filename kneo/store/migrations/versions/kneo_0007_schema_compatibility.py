"""The oldest version of Kneo that works on the schema, which lets a database be upgraded while older processes use it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0007"
down_revision = "kneo_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; ``kneo.store.migrate`` writes its row."""
    op.create_table(
        "schema_compatibility",
        sa.Column("id", sa.Integer(), sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
        sa.Column("compatible_from", sa.String(32), nullable=False),
    )
