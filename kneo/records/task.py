"""A human task: one question to people. One pause is one task is one continuation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kneo.spec.policy import SandboxLevel


class TaskStatus(StrEnum):
    OPEN = "open"
    CLAIMED = "claimed"
    SNOOZED = "snoozed"
    DECIDED = "decided"
    APPLIED = "applied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


SIGNED, SIGNED_BY_REVIEWER = "signed", "signed_by_reviewer"
"""Receipts that a gate can require: signed by the service, or signed by the reviewer as well."""

UNRESOLVED = frozenset({TaskStatus.OPEN, TaskStatus.CLAIMED, TaskStatus.SNOOZED})
"""Statuses in which a person can still answer."""

SANDBOX = "sandbox"
"""The fact of a call, and of a question about one, with the level and the profile of its sandbox."""

ARGUMENTS_DIGEST = "arguments_digest"
"""The fact of a task with the digest of the arguments of its call, where the subject is another text: a tool's own question."""

TAKES_OVER = "takes_over"
"""The key of a task's metadata with the candidates who take over from a program that makes a call itself."""

BEGUN = "begun_at"
"""The key of its metadata with the time at which the program began the call."""

REPORTED = "reported"
"""The effect of a decision that is such a program's report; its ``data`` has the result or the error."""

REPLAYED = "replay"
"""The author of a reused decision; see ``Decision.by``."""

GRANTED = "grant"
"""The author of a decision by a standing grant. The key of a task's metadata about grants, too."""


class DecisionKind(StrEnum):
    APPROVED = "approved"
    REJECTED = "rejected"
    EDITED = "edited"
    SELECTED = "selected"
    PROVIDED = "provided"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision of a task and its author. ``by`` is ``person``, ``policy:timeout``, ``replay`` or ``grant``."""

    kind: DecisionKind
    content: str | None
    selected_option: str | None
    comment: str | None
    actor: str
    by: str
    at: str
    effect: str | None = None
    """The effect of a rejection, where it is not the gate's: a deadline may skip or cancel."""
    selected_options: tuple[str, ...] = ()
    """All selected options, in order; ``selected_option`` is the first."""
    values: Mapping[str, object] | None = None
    """The values of a form, by field; validated against the task's schema."""
    data: object = None
    """The provided value, where it is JSON and not a text; ``content`` is its encoding."""
    feedback: str | None = None
    """Feedback for the next attempt."""
    voters: tuple[str, ...] = ()
    """The people whose votes made the decision."""
    source: str | None = None
    """The receipt or task of the reused decision."""

    @property
    def reason(self) -> str:
        """The reason of a rejection, in whichever field it was given; empty where none was."""
        return self.feedback or self.content or self.comment or ""

    @property
    def remark(self) -> str | None:
        """The text with which a person explained the decision: the reason of a rejection, else the comment."""
        return (self.reason or None) if self.kind is DecisionKind.REJECTED else self.comment


@dataclass(frozen=True)
class CallDecision(Decision):
    """The decision about a tool call, with what the question stated of its sandbox."""

    level: SandboxLevel | None = None
    """The level of the sandbox; ``None`` where the call has none."""


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
    """The link that carried the vote, or the local developer who tried the part of the person; the person did not authenticate."""
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
    """The requester of the run."""
    bundle_digest: str | None = None
    """The asking spec: the bundle's digest, or the spec's where there is no bundle."""
    previous: str | None = None
    """The previous output of the step, before it was sent back for a new attempt."""
    answer_schema: Mapping[str, object] | None = None
    """JSON Schema of the form or of the provided value."""
    multiple: bool = False
    """Whether several options may be selected."""
    candidates: Candidates = field(default_factory=Candidates)
    quorum: Quorum = field(default_factory=Quorum)
    votes: tuple[Vote, ...] = ()
    plan: Plan = field(default_factory=Plan)
    consequences: Mapping[str, object] = field(default_factory=dict)
    """The consequence of each decision, computed on the state of the run."""
    priority: int = 50
    claimed_by: str | None = None
    snoozed_until: str | None = None
    escalation: int = 0
    """Number of escalations so far."""
    due_at: str | None = None
    """When the task becomes overdue."""
    next_at: str | None = None
    """The next deadline, reminder or escalation; ``None`` where there is none."""
    resolved_at: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    created_at: str = ""
    updated_at: str = ""
    mac: bytes | None = field(default=None, repr=False, compare=False)
    """The message authentication code of the row; see ``kneo.store.tasks.check``."""

    @property
    def is_about_a_call(self) -> bool:
        """Whether a gate asks about one call of a tool."""
        facts = self.metadata.get("facts")
        return isinstance(facts, Mapping) and "gate" in facts

    @property
    def granted_use(self) -> Mapping[str, object] | None:
        """The use of the standing grant that decided: its ``id``, ``number``, ``of`` how many uses, and ``terms_digest``."""
        use = self.metadata.get(GRANTED)
        is_granted = self.decision is not None and self.decision.by == GRANTED
        return use if is_granted and isinstance(use, Mapping) else None

    @property
    def is_input(self) -> bool:
        """Whether a tool asks for input of its own (MCP elicitation). Such a question allows nothing: gates stand before the call."""
        facts = self.metadata.get("facts")
        return isinstance(facts, Mapping) and ARGUMENTS_DIGEST in facts

    @property
    def is_for_caller(self) -> bool:
        """Whether a program is to make a call itself and report its result, and no person has taken over."""
        return TAKES_OVER in self.metadata and self.escalation == 0

    @property
    def headline(self) -> str:
        """The question in one line: the call that it is about, else the first line of the prompt."""
        first = next((line for line in self.prompt.splitlines() if line.strip()), self.title)
        return self.title if self.is_about_a_call else " ".join(first.split())

    @property
    def is_restricted(self) -> bool:
        """Whether the task is restricted to some of the people who may answer tasks."""
        return not self.candidates.is_open


@dataclass(frozen=True, kw_only=True)
class TaskEvent:
    """An event of a task.

    ``data`` may contain texts of people and so never enters the audit log.
    """

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
    """The person whose answer it is."""
    subject_digest: str
    """Digest of the subject when the link was created; the link is void for another subject."""
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
    """Characters of the subject."""
    decision: DecisionKind | None
    """``None`` where the deadline ended the run."""
    by: str | None
    """``person``, ``policy:timeout`` or ``replay``."""
    content: str | None
    """The new text of an edited subject."""
    answers: tuple[str, ...]
    """The answer of each voter, as ``answer`` of their votes."""


@dataclass(frozen=True, kw_only=True)
class ReceiptRecord:
    """One row of ``receipts``. Only ``envelope`` is trusted; the other columns repeat its content."""

    id: str
    task_id: str
    run_id: str
    sequence: int
    digest: str
    """Digest of the signed payload."""
    envelope: bytes
    statements: tuple[str, ...] = ()
    """Envelopes of the statements that reviewers signed, as JSON texts."""
    audit_event_id: str
    at: str
