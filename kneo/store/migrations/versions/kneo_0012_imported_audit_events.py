"""The audit log of a database that was imported from the published platform."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0012"
down_revision = "kneo_0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "imported_audit_events",
        sa.Column("source", sa.String(16)),
        sa.Column("id", sa.String(40)),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("event_type", sa.String(60), nullable=False),
        sa.Column("actor", sa.String(200)),
        sa.Column("run_id", sa.String(40)),
        sa.Column("payload", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("source", "id", name="pk_imported_audit_events"),
    )
    op.create_index("ix_imported_audit_events_at_id", "imported_audit_events", ["at", "id"])
    present = sa.text("run_id IS NOT NULL")
    op.create_index(
        "ix_imported_audit_events_run_id_at",
        "imported_audit_events",
        ["run_id", "at"],
        sqlite_where=present,
        postgresql_where=present,
    )
