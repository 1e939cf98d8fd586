"""Operations that read a task in detail, decide it, and write its decision down for signing."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, WithJsonSchema

from kneo import registry
from kneo.api.may_answer import may_decide_task
from kneo.api.operation import DONE, Body, Context, Json, Waiting, check_length, operation, run_operation
from kneo.api.run_answers import wait_after_answer
from kneo.api.run_views import RunResumedView
from kneo.api.subjects import TASK
from kneo.api.task_calls import with_calls
from kneo.api.task_views import HumanTaskDetailView
from kneo.clock import isoformat, parse_duration
from kneo.errors import Forbidden, InvalidValue, KneoError
from kneo.records.task import DecisionKind, HumanTask
from kneo.runtime.engine.questions import as_it_stands
from kneo.store import history, releases, runs
from kneo.store.engine import Tx
from kneo.store.idempotency import AlreadyExecuted
from kneo.tasks import inbox
from kneo.tasks.decisions import DecisionRequest
from kneo.trust.answer import open_answer
from kneo.trust.dsse import read_envelope
from kneo.trust.statement import PAYLOAD_TYPE

MAX_BATCH = 100
"""The most decisions of one request."""

MAX_OUTPUTS = 50
"""The most outputs of steps in the detail of a task, the latest before the task opened."""

DecisionWord = Annotated[
    DecisionKind, WithJsonSchema({"type": "string", "enum": ["approved", "rejected", "edited", "selected", "provided"]})
]


class TaskDecision(Body):
    """A decision. `request_id` names the question that it answers; left out, it answers the present one."""

    request_id: str | None = None
    decision: DecisionWord
    content: object = Field(default=None, description="The text; any JSON value for `provided`.")
    selected_option: str | None = None
    selected_options: list[str] | None = Field(default=None, description="Several options, in their order.")
    values: dict[str, object] | None = Field(default=None, description="The values of a form, by field.")
    arguments: dict[str, object] | None = Field(
        default=None,
        description="`edited` at a tool call: the whole arguments, instead of their JSON text in `content`.",
    )
    feedback: str | None = Field(default=None, description="Feedback for the next attempt.")
    comment: str | None = None
    expect_digest: str | None = Field(default=None, description="The `subject_digest` of the reviewed subject.")
    statement: dict[str, object] | None = Field(
        default=None,
        description="A DSSE envelope of this decision, signed with a key of your own; `…/statement` returns what to sign.",
    )
    metadata: dict[str, object] = Field(default_factory=dict)

    def checked(self, limit: int) -> DecisionRequest:
        """Return the decision for a task, whose texts have at most ``limit`` characters.

        Raises:
            Invalid: ``input_too_large``.
        """
        for name in ("content", "values", "arguments", "feedback", "comment"):
            check_length(name, getattr(self, name), limit)
        return DecisionRequest(
            request_id=self.request_id,
            decision=self.decision,
            content=self.content,
            selected_option=self.selected_option,
            selected_options=tuple(self.selected_options) if self.selected_options is not None else None,
            values=self.values,
            arguments=self.arguments,
            feedback=self.feedback,
            comment=self.comment,
            expect_digest=self.expect_digest,
            statement=self.statement,
        )


def _limit(context: Context) -> int:
    return context.settings.limits.human_content_chars


@operation("GET", "/human-tasks/{continuation_id}", scope="human:read", about=TASK)
def get_human_task(context: Context, continuation_id: str) -> HumanTaskDetailView:
    """Read one task."""
    with context.store.read() as tx:
        task = as_it_stands(tx, inbox.find(tx, continuation_id))
        run = runs.get(tx, task.run_id)
        if run is not None:
            runs.check(tx, run)
        outputs = history.outputs_until(tx, task.run_id, task.created_at, limit=MAX_OUTPUTS)
        may_answer = may_decide_task(tx, task, context.principal)
        task = with_calls(
            tx, task, run, may_read_content=context.principal.may("runs:content"), is_candidate=may_answer.ok
        )
        return HumanTaskDetailView.with_messages(task, run, outputs, may_answer)


@run_operation(
    "POST",
    "/human-tasks/{continuation_id}/resume",
    scope="human:write",
    statuses=DONE,
    aliases=("/continuations/{continuation_id}/resume",),
    key_scope="human:resume",
    about=TASK,
)
def resume_human_task(context: Context, continuation_id: str, body: TaskDecision) -> Waiting[RunResumedView]:
    """Decide a task. The decision is stored before the run continues."""
    return wait_after_answer(context.store, lambda: _decide(context, continuation_id, body))


def _decide(context: Context, task_id: str, body: TaskDecision) -> HumanTask:
    request, actor = body.checked(_limit(context)), context.actor
    if request.statement is not None and not context.over_http:
        # The command line authenticates no person: the key that signed the statement identifies the decider.
        actor = open_answer(read_envelope(request.statement)).answer.reviewer
    via, first = context.via, None
    if context.on_behalf is not None:
        via, first = f"local developer {context.on_behalf}", lambda tx, _task: _check_undeclared(context, tx)
    return inbox.decide(
        context.store, task_id, request, actor=actor, via=via, first=first, pin=context.settings.trust_root
    )


def _check_undeclared(context: Context, tx: Tx) -> None:
    """Refuse to decide as another person where people are declared: there each decides alone.

    Raises:
        Forbidden: ``environments_declared``.
    """
    declared = releases.environment_names(tx)
    if declared or registry.is_followed(tx, context.settings.trust_root):
        named = f"it declares {', '.join(declared[:5])}" if declared else "its releases come from a config repository"
        msg = f"Nothing was decided as {context.actor}: this database is more than a trial, {named}."
        hint = "Decide as yourself, without --as. Another person decides with their own account or key."
        raise Forbidden(msg, code="environments_declared", hint=hint)


class BatchItem(TaskDecision):
    """A decision, and its task."""

    continuation_id: str


class DecisionBatch(Body):
    """Decisions for many tasks. Each is accepted or refused on its own."""

    items: list[BatchItem]


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """The result of one decision of a batch."""

    continuation_id: str
    run_id: str | None = None
    status: str | None = None
    error: str | None = None
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class DecisionBatchView:
    """The results of a batch."""

    results: list[BatchResult]
    decided: int
    refused: int


@operation("POST", "/human-tasks/batch", scope="human:write", about=TASK)
def resume_human_tasks(context: Context, body: DecisionBatch) -> DecisionBatchView:
    """Decide many tasks, and return for each whether the decision was accepted. Their runs continue on their own."""
    if len(body.items) > MAX_BATCH:
        msg = f"{len(body.items)} decisions in one request; the limit is {MAX_BATCH}."
        raise InvalidValue(msg, code="too_many_items", limit=MAX_BATCH)
    results = [_decide_item(context, item) for item in body.items]
    for run_id in dict.fromkeys(result.run_id for result in results if result.run_id is not None):
        context.drive(run_id)
    decided = sum(result.error is None for result in results)
    return DecisionBatchView(results=results, decided=decided, refused=len(results) - decided)


def _decide_item(context: Context, item: BatchItem) -> BatchResult:
    task_id = item.continuation_id
    try:
        task = inbox.decide(
            context.store, task_id, item.checked(_limit(context)), actor=context.actor, pin=context.settings.trust_root
        )
    except AlreadyExecuted:
        raise
    except KneoError as error:
        return BatchResult(continuation_id=task_id, error=error.code, message=str(error))
    return BatchResult(continuation_id=task_id, run_id=task.run_id, status=task.status.value)


class DecisionToSign(TaskDecision):
    """The decision to sign, as `resume` takes it afterwards."""

    expires_in: str = Field(
        default="15m", max_length=20, description="The lifetime of the statement.", examples=["15m"]
    )


@dataclass(frozen=True, kw_only=True)
class StatementView:
    """The bytes to sign for a decision; see the reference of receipts."""

    continuation_id: str
    payloadType: str  # noqa: N815 - the spelling of DSSE
    payload: Annotated[str, Field(description="Base64 of the bytes that DSSE signs, in its encoding.")]
    said: Annotated[Json, Field(description="The content of the payload.")]
    answered: Annotated[Json, Field(description="The value that `contentDigest` is the digest of.")]
    expires_at: str


@operation("POST", "/human-tasks/{continuation_id}/statement", scope="human:write", about=TASK)
def get_answer_to_sign(context: Context, continuation_id: str, body: DecisionToSign) -> StatementView:
    """Return the bytes that sign a decision as the caller. Changes nothing. Send the same decision with the envelope."""
    lifetime = parse_duration(body.expires_in)
    with context.store.read() as tx:
        unsigned = inbox.statement_for(
            tx, continuation_id, body.checked(_limit(context)), actor=context.actor, lasts=lifetime
        )
    statement = unsigned.statement
    return StatementView(
        continuation_id=continuation_id,
        payloadType=PAYLOAD_TYPE,
        payload=base64.b64encode(statement.payload).decode("ascii"),
        said=statement.answer.model_dump(mode="json", by_alias=True),
        answered=dict(unsigned.decided_content),
        expires_at=isoformat(statement.answer.expires),
    )
