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


SIGNED, SIGNED_BY_REVIEWER = "signed", "signed_by_reviewer"
"""Receipts that a gate can insist on: one that the service signed, and one that those who answer signed as well."""

UNRESOLVED = frozenset({TaskStatus.OPEN, TaskStatus.CLAIMED, TaskStatus.SNOOZED})
"""Statuses in which a person can still answer."""

REPLAYED = "replay"
"""Who decided, where an answer of an earlier run was used again; see ``Decision.by``."""


class DecisionKind(StrEnum):
    APPROVED = "approved"
    REJECTED = "rejected"
    EDITED = "edited"
    SELECTED = "selected"
    PROVIDED = "provided"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided, by whom. ``by`` is ``person``, ``policy:timeout`` or ``replay``."""

    kind: DecisionKind
    content: str | None
    selected_option: str | None
    comment: str | None
    actor: str
    by: str
    at: str
    effect: str | None = None
    """What a rejection does here, where that is not what the gate says: a deadline may skip or cancel."""
    selected_options: tuple[str, ...] = ()
    """Everything that was chosen, in the order it was chosen; ``selected_option`` is the first."""
    values: Mapping[str, object] | None = None
    """What was filled in, by field; checked against the task's schema."""
    data: object = None
    """What was provided, where that is JSON and not a text; ``content`` spells it."""
    feedback: str | None = None
    """Feedback for the next attempt."""
    voters: tuple[str, ...] = ()
    """Everybody whose vote made this the decision."""
    source: str | None = None
    """The receipt or task that a reused decision was taken from."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The people who may decide a task; all empty means everyone with the right to decide tasks."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    """Excluded people: names, ``requester``, ``bundle_signer``, ``previous_reviewers``."""

    @property
    def is_open(self) -> bool:
        return not (self.users or self.groups or self.roles)


@dataclass(frozen=True, kw_only=True)
class Quorum:
    """The required approvals, overall and by role, their order, and the rejections that suffice."""

    approvals: int = 1
    each: tuple[tuple[str, int], ...] = ()
    order: str = "any"
    reject: str = "any"


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One person's vote on a task. Votes with the same ``answer`` agree."""

    actor: str
    decision: DecisionKind
    answer: str
    at: str
    comment: str | None = None
    via: str | None = None
    """The link that carried the vote, where the person did not authenticate otherwise."""
    statement: str | None = None
    """The envelope of the statement that the person signed with their own key, as JSON text."""


@dataclass(frozen=True, kw_only=True)
class Escalation:
    """An escalation to a person or group, this many seconds ``after`` the task opened."""

    after: int
    to: str
    notify: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The schedule of a task, in seconds after it opened, and its notifications."""

    escalate: tuple[Escalation, ...] = ()
    remind: tuple[int, ...] = ()
    notify: tuple[str, ...] = ()
    links: bool = False
    receipt: str | None = None
    """``none``, ``signed``, ``signed_by_reviewer``; ``None`` is the default: signed where there is a key."""
    reminded: int = 0
    """Reminders sent."""


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
    position: str = "step"
    step_path: str = ""
    attempt: int = 0
    requester: str = ""
    """Who started the run."""
    bundle_digest: str | None = None
    """The spec that asks: the bundle's digest, or the spec's where there is no bundle."""
    previous: str | None = None
    """What the step said before it was sent back, for a reviewer to compare with."""
    answer_schema: Mapping[str, object] | None = None
    """JSON Schema of what has to be filled in or provided."""
    multiple: bool = False
    """Whether more than one option may be chosen."""
    candidates: Candidates = field(default_factory=Candidates)
    quorum: Quorum = field(default_factory=Quorum)
    votes: tuple[Vote, ...] = ()
    plan: Plan = field(default_factory=Plan)
    consequences: Mapping[str, object] = field(default_factory=dict)
    """What each decision leads to, found by trying it on the run's own state."""
    priority: int = 50
    claimed_by: str | None = None
    snoozed_until: str | None = None
    escalation: int = 0
    """How many escalations have happened."""
    due_at: str | None = None
    """When an answer was expected; later is overdue."""
    next_at: str | None = None
    """The next deadline, reminder or escalation; ``None`` where there is none."""
    resolved_at: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    created_at: str = ""
    updated_at: str = ""

    @property
    def is_restricted(self) -> bool:
        """Whether only some of those who may answer tasks may answer this one."""
        return not self.candidates.is_open


@dataclass(frozen=True, kw_only=True)
class TaskEvent:
    """Something that happened to a task; ``data`` may hold what people wrote and so never enters the audit log."""

    id: str
    task_id: str
    run_id: str
    at: str
    type: str
    actor: str | None
    data: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class TaskLink:
    """One row of ``task_links``, a link with which one person decides one task once. Only the SHA-256 of the token is stored."""

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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a resolved or expired task, for review statistics. Times are ISO-8601 texts."""

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
