"""Responses with the tokens of one-time links, which earlier versions stored under idempotency keys."""

from __future__ import annotations

from alembic import op

revision = "kneo_0017"
down_revision = "kneo_0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Delete these responses. The keys stay bound, as those of requests whose response was lost: to earlier versions too."""
    if op.get_bind().dialect.name == "sqlite":
        # Backups copy pages as they are, with the bytes of deleted values that were not overwritten.
        op.execute("PRAGMA secure_delete = ON")
    op.execute("UPDATE idempotency_keys SET status = NULL, response = NULL WHERE scope = 'create_link'")
