"""Positions of task events, in the order in which those who follow them read them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

INDEXES = (("id", "seq IS NULL", False), ("seq", "seq IS NOT NULL", True))


def upgrade() -> None:
    op.add_column("task_events", sa.Column("seq", sa.BigInteger()))
    op.execute(
        "UPDATE task_events SET seq = numbered.place"
        " FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM task_events) AS numbered"
        " WHERE numbered.id = task_events.id"
    )
    for column, where, unique in INDEXES:
        op.create_index(
            f"ix_task_events_{column}",
            "task_events",
            [column],
            unique=unique,
            sqlite_where=sa.text(where),
            postgresql_where=sa.text(where),
        )
    op.create_table(
        "task_feed",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_task_feed"),
    )
    # A database without events stays without rows: what a backup has is copied into such a one.
    op.execute(
        "INSERT INTO task_feed (id, last_seq) SELECT 1, newest.seq"
        " FROM (SELECT max(seq) AS seq FROM task_events) AS newest WHERE newest.seq IS NOT NULL"
    )
