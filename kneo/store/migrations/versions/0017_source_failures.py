"""Why the host of the config repository could not be asked lately, beside why its newest commit was refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sources", sa.Column("failed_at", sa.String(length=40), nullable=True))
    op.add_column("sources", sa.Column("failed_code", sa.String(length=60), nullable=True))
    op.add_column("sources", sa.Column("failed_message", sa.Text(), nullable=True))
