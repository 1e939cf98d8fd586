"""Links that one person can answer one question with, once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskLink:
    """One row of ``task_links``. The token itself is nowhere; whoever has it proves that by its SHA-256."""

    id: str
    token_hash: str
    task_id: str
    run_id: str
    person: str
    """Whose answer it is."""
    subject_digest: str
    """What was asked when it was made; about anything else it says nothing."""
    created_by: str
    created_at: str
    expires_at: str
    used_at: str | None = None
