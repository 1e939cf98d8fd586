"""What answers look like, for people and programs that read the description. Nothing is computed from these models.

Answers are supersets of the published ones, and may grow; what stands here as a field without a default is always there.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Map = dict[str, Any]


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow", defer_build=True)


class Paged(Answer):
    """One page of a list; ``window`` is the deepest offset."""

    count: int
    total: int
    window: int
    limit: int
    offset: int
    sort_by: str
    sort_order: Literal["asc", "desc"]


# ---- health -------------------------------------------------------------------------------------------------------


class Health(Answer):
    ok: bool
    service: str
    version: str = Field(description="The wire contract this service speaks.")
    build: str = Field(description="This package's version.")
    metadata: Map


class GraphNode(Answer):
    id: str
    kind: str
    name: str


class GraphEdge(Answer):
    source: str
    target: str
    label: str | None
    conditional: bool
    priority: int


class SpecGraph(Answer):
    workflow_name: str
    workflow_kind: str
    start: str | None
    max_steps: int | None
    nodes: list[GraphNode]
    edges: list[GraphEdge]


# ---- specs --------------------------------------------------------------------------------------------------------


class Diagnostic(Answer):
    """One finding."""

    code: str = Field(examples=["E_STEP_FUNCTION_REF"])
    severity: Literal["error", "warning", "info"]
    message: str
    path: str | None
    suggestion: str | None


class SpecValidate(Answer):
    valid: bool
    diagnostics: list[Diagnostic]
    report: Map


class SpecLint(Answer):
    clean: bool
    warning_count: int
    error_count: int
    diagnostics: list[Diagnostic]


class SpecCompile(Answer):
    ok: bool
    diagnostics: list[Diagnostic]
    summary: Map


class SpecExplain(Answer):
    summary: Map
    steps: list[Map]


class SpecResolve(Answer):
    spec: Map
    digest: str


class SpecMigrate(Answer):
    source_version: str | None
    target_version: str
    changed: bool
    applied: list[str]
    spec: Map


class SpecDiff(Answer):
    new: bool
    summary: str
    changes: list[Map]


class Report(Answer):
    valid: bool
    diagnostics: list[Diagnostic]


class PolicyReport(Answer):
    valid: bool
    report: Report


class Skill(Answer):
    name: str
    description: str | None
    bundles: list[Map]


class SkillsList(Paged):
    skills: list[Skill]


# ---- policies and credentials -------------------------------------------------------------------------------------


class Flags(Answer):
    """What an environment asks of every spec."""

    enabled: bool
    fail_on_warnings: bool
    blocked_diagnostic_codes: list[str]
    require_human_review: bool
    require_tool_permissions: bool
    deny_unrestricted_tools: bool
    require_guardrails: bool


class PolicyList(Answer):
    policies: dict[str, Flags]
    count: int


class Policy(Answer):
    environment: str
    policy: Flags | None = Field(description="What was set here; null where nothing was.")
    previous_policy: Flags | None
    effective: Flags = Field(description="With what Git and the project ask for: the strictest of all.")


class PolicyPreview(Answer):
    environment: str
    diff: Map
    affected_run_ids: list[str]
    newly_blocking: list[str]
    runs_evaluated: int


class Credential(Answer):
    name: str = Field(examples=["provider:openai"])
    env_var: str = Field(examples=["OPENAI_API_KEY"])
    present: bool
    value: Literal["[REDACTED]"] | None
    status: Literal["present", "missing"]
    expires_at: str | None
    last_checked: str | None


class CredentialGroups(Answer):
    providers: dict[str, Credential]
    extra: dict[str, Credential]
    service_tokens: dict[str, Credential] = Field(default_factory=dict)


class CredentialInventory(Answer):
    inventory: CredentialGroups


# ---- people -------------------------------------------------------------------------------------------------------


class HumanTask(Answer):
    id: str
    continuation_id: str
    run_id: str
    status: str
    request: Map | None


class HumanTaskList(Paged):
    tasks: list[HumanTask]


class HumanResumed(Answer):
    run_id: str
    status: str
    output_text: str | None
    metadata: Map


class TaskLink(Answer):
    """A link; its token is shown this once."""

    id: str
    continuation_id: str
    person: str
    subject_digest: str
    expires_at: str
    path: str = Field(examples=["/h/TOKEN"])
    url: str | None = Field(description="`path` at `KNEO_SERV_PUBLIC_URL`; null where that is not set.")


class TaskLinkState(Answer):
    """A link as it is kept, which is without its token."""

    id: str
    continuation_id: str
    person: str
    subject_digest: str
    state: Literal["open", "used", "expired"]
    created_by: str
    created_at: str
    expires_at: str
    used_at: str | None


class TaskLinkList(Answer):
    continuation_id: str
    links: list[TaskLinkState]
    count: int


class Receipt(Answer):
    """Proof of a decision; see the page about receipts."""

    receipt: Map = Field(description="What is signed, to read.")
    envelope: Map = Field(description="What is signed, to check.")
    statements: list[Map] = Field(description="Envelopes of what those who answered signed themselves.")
    unsigned: Map


class AnswerToSign(Answer):
    """What to sign to give an answer; see the page about receipts."""

    continuation_id: str
    payloadType: str  # noqa: N815 - as DSSE spells it
    payload: str = Field(description="Base64 of the bytes that the signature is over, in DSSE's encoding of them.")
    said: Map = Field(description="What the payload says.")
    answered: Map = Field(description="What `contentDigest` is the digest of.")
    expires_at: str


class ReceiptList(Answer):
    run_id: str
    receipts: list[Receipt]
    count: int


class ReceiptKey(Answer):
    key: str = Field(description="PEM.")
    keyid: str
    algorithm: str


class ReceiptVerdict(Answer):
    valid: bool
    problems: list[Map] = Field(description="Each with `receipt`, `field` and `message`.")
    receipts: list[Map]


class TaskSummary(Answer):
    waiting: int
    escalated: int
    overdue: int
    by_status: dict[str, int]
    by_kind: dict[str, int]
    by_environment: dict[str, int]


class GateStats(Answer):
    """One gate. Shares are from 0 to 1, of what people answered."""

    gate: str = Field(examples=["draft.after"])
    environment: str | None
    workflow_name: str | None
    position: str
    decided: int
    by_people: int
    by_deadline: int
    by_replay: int
    expired: int
    decisions: dict[str, int]
    median_seconds: float | None
    p90_seconds: float | None
    edited_share: float | None
    rejected_share: float | None
    edit_distance: float | None = Field(description="Median share of the words that an edit changed.")
    edits_compared: int
    quick_share: float | None = Field(description="Approvals before what was shown could have been read.")
    rubber_stamp: bool = Field(description="Nearly all approved as shown, and most of that unread.")
    voted: int
    agreement: float | None = Field(description="Where several were heard: share in which all said the same.")


class TaskStats(Answer):
    since: str
    until: str
    tasks: int
    truncated: bool = Field(description="Whether there were more than these figures are of.")
    gates: list[GateStats]


class TaskEvent(Answer):
    id: str
    continuation_id: str
    run_id: str
    type: str
    actor: str | None
    at: str
    data: Map


class TaskHistory(Answer):
    continuation_id: str
    events: list[TaskEvent]


class BatchResult(Answer):
    continuation_id: str
    run_id: str | None
    status: str | None
    error: str | None
    message: str | None


class TaskBatch(Answer):
    results: list[BatchResult]
    decided: int
    refused: int


# ---- releases -----------------------------------------------------------------------------------------------------


class Condition(Answer):
    type: str
    status: str | bool
    reason: str
    message: str
    since: str


class Environment(Answer):
    name: str
    revision: str | None
    conditions: list[Condition]
    releases: list[Map]
    pending: list[Map]
    holds: list[Map]
    suspension: Map | None


class EnvironmentList(Answer):
    environments: list[Environment]


class EnvironmentHistory(Answer):
    environment: str
    promotions: list[Map]


class Why(Answer):
    environment: str
    bundle: str
    blocked: bool
    gate: str | None
    reason: str | None
    message: str
    who: list[str]


class Changed(Answer):
    """What the controller found when it looked again, and how the environment stands now."""

    result: Map | None
    environment: Environment | None


class Decided(Changed):
    """A decision as it is recorded, and what came of it."""

    approval: Map


class Plan(Answer):
    """What a commit would change."""

    ref: str | None = None
    revision: str | None = None
    commits: Map | None = None
    environments: list[Map] = Field(default_factory=list)


class Source(Answer):
    """How far the repository was followed, and why not further."""

    url: str
    ref: str
    accepted_commit: str | None


class PromotionList(Answer):
    promotions: list[Map]
    count: int


class Traced(Answer):
    digest: str
    run: Map | None
    bundle: Map | None
    promotions: list[Map]


class BundleSummary(Answer):
    name: str
    version: str
    digest: str
    signers: list[str]
    served_in: list[str]


class BundleList(Answer):
    bundles: list[BundleSummary]
    count: int


class BundleVersions(Answer):
    name: str
    versions: list[BundleSummary]


class BundleVersion(BundleSummary):
    spec: Map | None


class HookAccepted(Answer):
    accepted: bool
    duplicate: bool


# ---- audit --------------------------------------------------------------------------------------------------------


class AuditEvent(Answer):
    id: str
    event_type: str
    run_id: str | None
    continuation_id: str | None
    actor: str | None
    seq: int | None
    leaf: str | None
    metadata: Map
    payload: Map
    created_at: str
    occurred_at: str


class AuditList(Paged):
    events: list[AuditEvent]


class AuditCheckpoint(Answer):
    size: int
    root: str
    note: str
    key: str


class AuditProof(Answer):
    checkpoint: str
    key: str
    path: list[str]
    event: AuditEvent
    canonical: str
