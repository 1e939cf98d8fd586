"""Indexes of statements whose cost grew with everything that is kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0006"
down_revision = "kneo_0005"
branch_labels = None
depends_on = None

PARTIAL = (
    ("ix_runs_bundle_updated_at", "runs", ["bundle", "updated_at"], "bundle IS NOT NULL"),
    ("ix_runs_workflow_name_updated_at", "runs", ["workflow_name", "updated_at"], "workflow_name IS NOT NULL"),
    ("ix_runs_failed", "runs", ["created_at", "id"], "error IS NOT NULL"),
    ("ix_audit_events_environment_id", "audit_events", ["environment", "id"], "environment IS NOT NULL"),
    ("ix_audit_events_actor_id", "audit_events", ["actor", "id"], "actor IS NOT NULL"),
    ("ix_outbox_run_id", "outbox", ["run_id"], "run_id IS NOT NULL"),
    ("ix_outbox_continuation_id", "outbox", ["continuation_id"], "continuation_id IS NOT NULL"),
)

MEMBER = {"postgresql": "payload ->> '{name}'", "sqlite": "json_extract(payload, '$.{name}')"}


def upgrade() -> None:
    """Create the indexes, and the columns by which retention finds messages."""
    member = MEMBER[op.get_bind().dialect.name]
    for name in ("run_id", "continuation_id"):
        op.add_column("outbox", sa.Column(name, sa.String(40)))
        op.execute(f"UPDATE outbox SET {name} = {member.format(name=name)}")  # noqa: S608 - constants
    for name, table, columns, where in PARTIAL:
        condition = sa.text(where)
        op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
    op.create_index("ix_runs_spec_digest", "runs", ["spec_digest"])
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
