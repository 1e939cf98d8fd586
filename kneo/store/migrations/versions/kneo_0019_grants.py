"""Standing grants and their uses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from kneo.store.append_only import definitions

revision = "kneo_0019"
down_revision = "kneo_0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and the triggers that keep uses append-only."""
    op.create_table(
        "grants",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("environment", sa.String(200), nullable=False),
        sa.Column("bundle", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("tool", sa.String(200), nullable=False),
        sa.Column("expression", sa.Text()),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("ended", sa.String(10)),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("totals", sa.JSON(), nullable=False),
        sa.Column("checks", sa.JSON(), nullable=False),
        sa.Column("votes", sa.JSON(), nullable=False),
        sa.Column("terms_digest", sa.String(71), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("expires_at", sa.String(40), nullable=False),
        sa.Column("ended_at", sa.String(40)),
        sa.Column("ended_by", sa.String(200)),
        sa.Column("mac", sa.LargeBinary()),
    )
    is_open = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_grants_environment_digest_tool",
        "grants",
        ["environment", "digest", "tool"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_index("ix_grants_environment_bundle", "grants", ["environment", "bundle"])
    op.create_table(
        "grant_uses",
        sa.Column("task_id", sa.String(40), primary_key=True),
        sa.Column("grant_id", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(40), nullable=False),
        sa.Column("amounts", sa.JSON(), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.UniqueConstraint("grant_id", "number", name="uq_grant_uses_grant_id_number"),
    )
    op.create_index("ix_grant_uses_grant_id_run_id", "grant_uses", ["grant_id", "run_id"])
    for statement in definitions(op.get_bind().dialect.name, "grant_uses"):
        op.get_bind().exec_driver_sql(statement)
