"""Indexes of runs without those that do not have what is indexed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

COLUMNS = (("session_id", "updated_at"), ("environment", "updated_at"), ("bundle_digest",))


def upgrade() -> None:
    for columns in COLUMNS:
        name = f"ix_runs_{'_'.join(columns)}"
        has_it = sa.text(f"{columns[0]} IS NOT NULL")
        op.drop_index(name, "runs")
        op.create_index(name, "runs", list(columns), sqlite_where=has_it, postgresql_where=has_it)
