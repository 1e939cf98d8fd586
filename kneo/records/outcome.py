"""What became of a question, as far as figures about reviewing need it."""

from __future__ import annotations

from dataclasses import dataclass

from kneo.records.task import DecisionKind, TaskStatus


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A few columns of one row of ``tasks`` that was answered, or that nobody answered in time. Times are ISO-8601 texts."""

    id: str
    environment: str | None
    workflow_name: str | None
    key: str
    position: str
    status: TaskStatus
    asked_at: str
    resolved_at: str
    shown_chars: int
    """Characters of what was shown."""
    decision: DecisionKind | None
    """``None`` where the deadline ended the run."""
    by: str | None
    """``person``, ``policy:timeout`` or ``replay``."""
    content: str | None
    """What was written instead, where it was edited."""
    answers: tuple[str, ...]
    """What each voter said, as ``answer`` of their votes."""
