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


# ---- hooks ------------------------------------------------------------------------------------------------------


class HookAccepted(Answer):
    accepted: bool
    duplicate: bool
