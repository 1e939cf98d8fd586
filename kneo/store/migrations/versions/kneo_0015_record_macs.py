"""Message authentication codes of records."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "kneo_0015"
down_revision = "kneo_0014"
branch_labels = None
depends_on = None

TABLES = (
    "agent_journal",
    "approvals",
    "audit_events",
    "browser_sessions",
    "bundles",
    "checkpoints",
    "environments",
    "journal_entries",
    "oidc_people",
    "pending_plans",
    "pending_releases",
    "project_metadata",
    "promotions",
    "qualified_bundles",
    "requests",
    "runs",
    "session_messages",
    "session_summaries",
    "sign_in_links",
    "steps",
    "task_links",
    "tasks",
    "trust_roots",
)


def upgrade() -> None:
    """Add the columns. ``kneo maintenance adopt`` authenticates the rows that exist; a migration must not vouch for them."""
    for table in TABLES:
        op.add_column(table, sa.Column("mac", sa.LargeBinary()))
