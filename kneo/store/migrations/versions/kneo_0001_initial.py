"""The schema of the first release, which ``kneo.store.migrate`` creates from ``kneo.store.tables`` in an empty database."""

from __future__ import annotations

revision = "kneo_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change nothing: a database at this revision has its tables already."""
