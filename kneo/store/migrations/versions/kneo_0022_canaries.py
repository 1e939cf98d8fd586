"""Canaries, and the runs that they compare."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0022"
down_revision = "kneo_0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "canaries",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("environment", sa.String(200), nullable=False),
        sa.Column("bundle", sa.String(200), nullable=False),
        sa.Column("version", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("base_digest", sa.String(71), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("plan_digest", sa.String(71), nullable=False),
        sa.Column("policy_digest", sa.String(71), nullable=False),
        sa.Column("approvals", sa.JSON(), nullable=False),
        sa.Column("salt", sa.String(64), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("share", sa.Integer(), nullable=False),
        sa.Column("counts", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("blocks", sa.Boolean(), nullable=False),
        sa.Column("promotes", sa.Boolean(), nullable=False),
        sa.Column("began_at", sa.String(40), nullable=False),
        sa.Column("step_at", sa.String(40), nullable=False),
        sa.Column("ended_at", sa.String(40)),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("mac", sa.LargeBinary()),
    )
    is_live = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_canaries_environment_bundle",
        "canaries",
        ["environment", "bundle"],
        unique=True,
        sqlite_where=is_live,
        postgresql_where=is_live,
    )
    op.create_index("ix_canaries_environment_digest", "canaries", ["environment", "digest"])
    op.create_table(
        "canary_runs",
        sa.Column("canary_id", sa.String(40)),
        sa.Column("run_id", sa.String(40)),
        sa.Column("candidate", sa.Boolean(), nullable=False),
        sa.Column("share", sa.Integer(), nullable=False),
        sa.Column("bad", sa.JSON(), nullable=False),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.Column("started_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("canary_id", "run_id", name="pk_canary_runs"),
    )
    is_open = sa.text("NOT settled")
    op.create_index(
        "ix_canary_runs_open",
        "canary_runs",
        ["canary_id", "run_id"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
