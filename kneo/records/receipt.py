"""Receipts as they are kept: the signed bytes, and what they are found by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReceiptRecord:
    """One row of ``receipts``. Nothing here is believed that ``envelope`` does not say."""

    id: str
    task_id: str
    run_id: str
    sequence: int
    digest: str
    """Of the signed payload."""
    envelope: bytes
    statements: tuple[str, ...] = ()
    """Envelopes of what the reviewers signed themselves, as JSON texts."""
    audit_event_id: str
    at: str
