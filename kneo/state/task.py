"""A human task: one question to a person. One pause is one task is one continuation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class TaskStatus(StrEnum):
    OPEN = "open"
    CLAIMED = "claimed"
    SNOOZED = "snoozed"
    DECIDED = "decided"
    APPLIED = "applied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


UNRESOLVED = frozenset({TaskStatus.OPEN, TaskStatus.CLAIMED, TaskStatus.SNOOZED})
"""Statuses in which somebody can still answer."""

NEXT: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.OPEN: frozenset(
        {TaskStatus.CLAIMED, TaskStatus.SNOOZED, TaskStatus.DECIDED, TaskStatus.EXPIRED, TaskStatus.CANCELLED}
    ),
    TaskStatus.CLAIMED: frozenset(
        {TaskStatus.OPEN, TaskStatus.SNOOZED, TaskStatus.DECIDED, TaskStatus.EXPIRED, TaskStatus.CANCELLED}
    ),
    TaskStatus.SNOOZED: frozenset({TaskStatus.OPEN, TaskStatus.DECIDED, TaskStatus.EXPIRED, TaskStatus.CANCELLED}),
    TaskStatus.DECIDED: frozenset({TaskStatus.APPLIED, TaskStatus.CANCELLED}),
    TaskStatus.APPLIED: frozenset(),
    TaskStatus.EXPIRED: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
}


class DecisionKind(StrEnum):
    APPROVED = "approved"
    REJECTED = "rejected"
    EDITED = "edited"
    SELECTED = "selected"
    PROVIDED = "provided"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided, by whom. ``by`` is ``person`` or ``policy:timeout``."""

    kind: DecisionKind
    content: str | None
    selected_option: str | None
    comment: str | None
    actor: str
    by: str
    at: str
    effect: str | None = None
    """What a rejection does here, where that is not what the gate says: a deadline may skip or cancel."""


@dataclass(frozen=True, kw_only=True)
class HumanTask:
    """One row of ``tasks``. Times are ISO-8601 texts."""

    id: str
    request_id: str
    run_id: str
    environment: str | None
    workflow_name: str | None
    workflow_type: str | None
    step_id: str
    key: str
    """Stable name of the gate over resume and replay: ``<step path>[#iteration][@attempt].<position>``."""
    kind: str
    status: TaskStatus
    version: int
    """Raised by every change; a decision is a compare-and-set on it."""
    title: str
    prompt: str
    subject: str
    subject_digest: str
    options: tuple[str, ...] | None
    default_option: str | None
    decisions: tuple[DecisionKind, ...]
    assignee: str | None
    timeout_seconds: int | None
    on_timeout: str
    on_reject: str
    deadline_at: str | None
    escalated_at: str | None
    decision: Decision | None
    metadata: Mapping[str, object] = field(default_factory=dict)
    created_at: str = ""
    updated_at: str = ""
