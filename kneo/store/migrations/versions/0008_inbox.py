"""Human tasks with everything they ask for, what happens to them, and how many wait."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

UNANSWERED = sa.text("resolved_at IS NULL")
DUE = sa.text("next_at IS NOT NULL")
INBOX = (
    ("id", "title"),
    ("priority", "id"),
    ("due_at", "id"),
    ("kind", "id"),
    ("environment", "id"),
    ("workflow_name", "id"),
    ("step_id", "id"),
    ("assignee", "id"),
    ("claimed_by", "id"),
    ("escalation", "id"),
    ("restricted", "id"),
)


def upgrade() -> None:
    for column in (
        sa.Column("position", sa.String(20), nullable=False, server_default="step"),
        sa.Column("step_path", sa.Text(), nullable=False, server_default=sa.text("''")),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("requester", sa.String(200), nullable=False, server_default=sa.text("''")),
        sa.Column("bundle_digest", sa.String(71)),
        sa.Column("previous", sa.Text()),
        sa.Column("answer_schema", sa.JSON()),
        sa.Column("multiple", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("candidates", sa.JSON()),
        sa.Column("quorum", sa.JSON()),
        sa.Column("votes", sa.JSON()),
        sa.Column("plan", sa.JSON()),
        sa.Column("consequences", sa.JSON()),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="50"),
        sa.Column("restricted", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("claimed_by", sa.String(200)),
        sa.Column("snoozed_until", sa.String(40)),
        sa.Column("escalation", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("due_at", sa.String(40)),
        sa.Column("next_at", sa.String(40)),
        sa.Column("resolved_at", sa.String(40)),
    ):
        op.add_column("tasks", column)
    op.drop_index("ix_tasks_status_deadline_at", "tasks")
    op.execute("UPDATE tasks SET resolved_at = updated_at WHERE status NOT IN ('open', 'claimed', 'snoozed')")
    op.execute("UPDATE tasks SET escalation = 1 WHERE escalated_at IS NOT NULL")
    op.execute("UPDATE tasks SET next_at = deadline_at WHERE resolved_at IS NULL AND escalated_at IS NULL")
    op.execute(
        "UPDATE tasks SET requester = (SELECT r.requester FROM runs r WHERE r.id = tasks.run_id),"
        " bundle_digest = (SELECT coalesce(r.bundle_digest, r.spec_digest) FROM runs r WHERE r.id = tasks.run_id)"
        " WHERE EXISTS (SELECT 1 FROM runs r WHERE r.id = tasks.run_id)"
    )
    for columns in INBOX:
        name = f"ix_tasks_{'_'.join(columns)}"
        op.create_index(name, "tasks", list(columns), sqlite_where=UNANSWERED, postgresql_where=UNANSWERED)
    op.create_index("ix_tasks_next_at", "tasks", ["next_at"], sqlite_where=DUE, postgresql_where=DUE)
    op.create_table(
        "task_candidates",
        sa.Column("who", sa.String(420), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("who", "task_id", name="pk_task_candidates"),
    )
    op.create_index("ix_task_candidates_task_id", "task_candidates", ["task_id"])
    op.create_table(
        "task_events",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("run_id", sa.String(40), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("actor", sa.String(200)),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_task_events"),
    )
    op.create_index("ix_task_events_task_id_id", "task_events", ["task_id", "id"])
    op.create_index("ix_task_events_run_id", "task_events", ["run_id"])
    op.create_table(
        "task_tallies",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("environment", sa.String(200)),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("escalated", sa.Boolean(), nullable=False),
        sa.Column("amount", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_task_tallies"),
    )
    op.execute(
        "INSERT INTO task_tallies (id, environment, kind, status, escalated, amount)"
        " SELECT 'tly_' || substr(min(id), 6), environment, kind, status, escalation > 0, count(*)"
        " FROM tasks WHERE resolved_at IS NULL GROUP BY environment, kind, status, escalation > 0"
    )
