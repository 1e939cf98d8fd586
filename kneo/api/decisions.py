"""Operations that read a task with the calls before it, decide it, and write its decision down for signing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field, WithJsonSchema

from kneo import registry
from kneo.api.conversation_messages import OUTCOMES, WITHHELD_ALL, ContentTexts
from kneo.api.may_answer import may_decide_task
from kneo.api.operation import DONE, Body, Context, Json, Waiting, check_length, operation, run_operation
from kneo.api.run_answers import wait_after_answer
from kneo.api.run_steps import path_of
from kneo.api.run_views import RunResumedView
from kneo.api.subjects import TASK
from kneo.api.task_views import HumanTaskDetailView
from kneo.clock import isoformat, parse_duration
from kneo.errors import Forbidden, InvalidValue, KneoError
from kneo.records.conversation import EDITED_BY, ConversationEntry, EntryKind
from kneo.records.run import Run
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask
from kneo.redaction import redact
from kneo.runtime.engine.questions import as_it_stands, spec_of
from kneo.spec.call_title import call_title
from kneo.spec.models.spec import Tool
from kneo.store import agent_journal, history, releases, runs
from kneo.store.engine import Tx
from kneo.store.idempotency import AlreadyExecuted
from kneo.tasks import inbox
from kneo.tasks.decisions import DecisionRequest
from kneo.trust.answer import open_answer
from kneo.trust.dsse import read_envelope
from kneo.trust.statement import PAYLOAD_TYPE

MAX_CALLS = 10
"""Calls of a question, the latest before it."""

PREVIEW_CHARS = 2_000
"""Characters of one result."""


def with_calls(tx: Tx, task: HumanTask, run: Run | None, *, may_read_content: bool, is_candidate: bool) -> HumanTask:
    """Return a task with the earlier calls of its step among its facts, as ``calls``.

    The candidates of an open task read them, and every caller who may read the content of runs, unless the environment shows no
    context (``questions.context: none``).

    Args:
        tx: An open transaction.
        task: The task.
        run: Its run.
        may_read_content: Whether the caller may read the content of runs.
        is_candidate: Whether the caller may decide the task.
    """
    if run is None or not task.is_about_a_call:
        return task
    if not (may_read_content or (is_candidate and task.status in UNRESOLVED)):
        return task
    declared = registry.find_declared(tx, task.environment)
    if declared is not None and declared.spec.questions.context == "none":
        return task
    facts = task.metadata["facts"]
    assert isinstance(facts, Mapping)
    try:
        calls = _calls_before(tx, task, run, str(facts.get("tool")))
    except KneoError:
        # The journal is sealed with a key that this process does not have, or the spec is no longer kept.
        return task
    return replace(task, metadata={**task.metadata, "facts": {**facts, "calls": calls}})


def _calls_before(tx: Tx, task: HumanTask, run: Run, asking: str) -> list[Json]:
    spec = spec_of(tx, run)
    tools = spec.tools if spec is not None else {}
    shows = tools[asking].shows if asking in tools else None
    entries = _entries_before(tx, task, run.id)
    shown = [each for each in entries if shows is None or each.facts.get("tool") in shows][-MAX_CALLS:]
    texts = ContentTexts(personal=True)
    bodies = _bodies(tx, run.id, shown)
    return [_view(entry, bodies[entry.conversation, entry.name], tools, texts) for entry in shown]


def _entries_before(tx: Tx, task: HumanTask, run_id: str) -> list[ConversationEntry]:
    """Return the finished calls of a task's step, in the round that asks, without those that no view shows."""
    of_step = [
        entry
        for entry in agent_journal.list_facts(tx, run_id)
        if path_of(entry.location) == task.step_path and entry.started_at <= task.created_at
    ]
    replies = [entry for entry in of_step if entry.kind is EntryKind.MODEL]
    location = replies[-1].location if replies else None
    hidden = {entry.conversation for entry in replies if entry.facts.get("withheld") == WITHHELD_ALL}
    return [
        entry
        for entry in of_step
        if entry.kind is EntryKind.TOOL
        and entry.status in OUTCOMES
        and entry.location == location
        and entry.conversation not in hidden
    ]


def _bodies(
    tx: Tx, run_id: str, entries: Sequence[ConversationEntry]
) -> Mapping[tuple[str, str], Mapping[str, object]]:
    conversations = {entry.conversation for entry in entries}
    loaded = (each for name in sorted(conversations) for each in agent_journal.load(tx, run_id, name))
    return {(each.conversation, each.name): each.body for each in loaded}


def _view(entry: ConversationEntry, body: Mapping[str, object], tools: Mapping[str, Tool], texts: ContentTexts) -> Json:
    name = str(entry.facts.get("tool"))
    arguments = redact(body.get("arguments", {}), personal=True)
    assert isinstance(arguments, Mapping)
    result = texts.shown(body.get("result", ""))
    return {
        "tool": name,
        "title": call_title(name, tools[name].title if name in tools else None, arguments),
        "arguments": dict(arguments),
        "outcome": OUTCOMES[entry.status],
        "result_preview": result[:PREVIEW_CHARS],
        "characters": len(result),
        "edited_by": entry.facts.get(EDITED_BY),
        "at": entry.completed_at or entry.started_at,
    }


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
