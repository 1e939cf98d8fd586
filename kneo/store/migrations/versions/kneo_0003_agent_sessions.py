"""The sessions of agents: their messages, and the summaries of earlier messages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0003"
down_revision = "kneo_0002"
branch_labels = None
depends_on = None

SESSION = ("environment", "requester", "session_id")


def upgrade() -> None:
    op.create_table(
        "agent_sessions",
        *(sa.Column(name, sa.String(200)) for name in SESSION),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("updated_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint(*SESSION, name="pk_agent_sessions"),
    )
    op.create_index("ix_agent_sessions_requester_updated_at", "agent_sessions", ["requester", "updated_at"])
    op.create_index("ix_agent_sessions_updated_at", "agent_sessions", ["updated_at"])
    op.create_table(
        "session_messages",
        *(sa.Column(name, sa.String(200)) for name in SESSION),
        sa.Column("agent", sa.Text()),
        sa.Column("number", sa.Integer()),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("run_id", sa.String(40), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint(*SESSION, "agent", "number", name="pk_session_messages"),
    )
    op.create_table(
        "session_summaries",
        *(sa.Column(name, sa.String(200)) for name in SESSION),
        sa.Column("agent", sa.Text()),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint(*SESSION, "agent", name="pk_session_summaries"),
    )
