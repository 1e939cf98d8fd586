"""Idempotency keys are bound to what their request made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A key without an answer was claimed before its request was executed, by a process that has ended since.
    op.execute("DELETE FROM idempotency_keys WHERE status IS NULL")
    op.add_column("idempotency_keys", sa.Column("subject", sa.Text()))
    op.add_column("idempotency_keys", sa.Column("attempt", sa.String(40)))
