"""Operations that answer a paused run: with a value, or with the resolved requirements of workflow libraries.

A submitted requirement answers a stored question and never replaces it: the task decides about candidates, subject and
accepted answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from pydantic import BaseModel, ConfigDict, Field

from kneo.api.operation import DONE, Body, Context, Json, Waiting, check_length, run_operation
from kneo.api.run_views import RunResumedView
from kneo.api.subjects import RUN
from kneo.errors import Conflict, Invalid, KneoError, NotFound, Usage
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask
from kneo.runtime.engine.wait import RunSettled, SettledRun, find_run, read_settled_run
from kneo.store import idempotency, tasks
from kneo.store.engine import Store
from kneo.store.idempotency import AlreadyExecuted
from kneo.tasks import inbox
from kneo.tasks.decisions import DecisionRequest, check_unnamed, decision_from_value, find_pending, rejection

MAX_REQUIREMENTS = 100
"""Most requirements of one request."""


def wait_after_answer(store: Store, answer: Callable[[], HumanTask]) -> Waiting[RunResumedView]:
    """Answer a task, unless an earlier execution of the same request has done so; then wait for the task's run."""
    task_id = idempotency.made()
    task = answer() if task_id is None else _answered_before(store, task_id)
    settling = RunSettled(task.run_id, answered=task.id)
    return Waiting(settling, partial(RunResumedView.after, task), notified=task.status not in UNRESOLVED)


def _answered_before(store: Store, task_id: str) -> HumanTask:
    with store.read() as tx:
        return inbox.find(tx, task_id)


class RunInput(Body):
    """A value for a waiting run, or the statement that there is none."""

    value: object = None
    abort: bool = Field(default=False, description="No value: the guarded step does not run.")
    reason: str | None = None
    key: str | None = Field(
        default=None,
        description="The key of the question. The first question of a run needs no name; each later one does.",
    )
    request_id: str | None = Field(default=None, description="The id of the request, instead of the key.")
    expect_digest: str | None = Field(
        default=None, description="The `subject_digest` of the reviewed subject; names the question too."
    )


@run_operation("POST", "/runs/{run_id}/input", scope="human:write", statuses=DONE, about=RUN)
def put_run_input(context: Context, run_id: str, body: RunInput) -> Waiting[RunResumedView]:
    """Answer the open question of a run with a value.

    A run that has asked before continues only with an answer that names its question: `question_not_named` otherwise.
    """

    def answer() -> HumanTask:
        find_run(context.store, run_id)
        value = json.dumps(body.value, default=str)
        check_length("value", value, context.settings.limits.human_content_chars)
        with context.store.read() as tx:
            task = find_pending(run_id, tasks.of_run(tx, run_id, UNRESOLVED), body.key or body.request_id)
            if not (body.key or body.request_id or body.expect_digest):
                check_unnamed(task, len(tasks.resolved_steps(tx, run_id)))
        decision = rejection(task, body.reason) if body.abort else decision_from_value(task, body.value)
        named = replace(decision, request_id=body.request_id or task.request_id, expect_digest=body.expect_digest)
        return inbox.decide(context.store, task.id, named, actor=context.actor)

    return wait_after_answer(context.store, answer)


class ResolvedRequirement(BaseModel):
    """The answer to one question. Other fields of a requirement may be sent back unchanged and have no effect."""

    model_config = ConfigDict(extra="ignore")

    continuation_id: str | None = Field(default=None, description="The id of the question; or its key, or its step.")
    key: str | None = None
    step_id: str | None = Field(default=None, description="The path of the asking step.")
    step_name: str | None = None
    confirmed: bool | None = None
    rejection_feedback: str | None = None
    user_input: dict[str, object] | None = None
    edited_output: object = None
    selected_choices: list[str] | None = None
    decision: str | None = Field(default=None, description="After an error: retry, skip or stop.")
    value: object = Field(default=None, description="The value that a step requested.")
    subject_digest: str | None = Field(
        default=None, description="The digest of the reviewed subject; refused where it changed."
    )


class ContinueRun(Body):
    """The resolved requirements of a paused run. Unresolved ones stay open."""

    step_requirements: list[ResolvedRequirement] = Field(min_length=1, max_length=MAX_REQUIREMENTS)
    session_id: str | None = Field(default=None, description="The session of the run, as a check.")
    stream: bool = Field(default=False, description="Not supported: use `GET /v1/runs/{run_id}/events`.")
    background: bool = Field(default=False, description="Respond at once; the run continues in the background.")


@dataclass(frozen=True, kw_only=True)
class WorkflowRunContinuedView(RunResumedView):
    """The state of a run, and its open requirements."""

    workflow_id: str | None
    content: str | None
    is_paused: bool
    step_requirements: list[Json]
    refused: list[Json]


@run_operation("POST", "/workflows/{workflow_id}/runs/{run_id}/continue", scope="human:write", statuses=DONE, about=RUN)
def continue_workflow_run(
    context: Context, workflow_id: str, run_id: str, body: ContinueRun
) -> Waiting[WorkflowRunContinuedView]:
    """Answer requirements of a paused run and continue the run; each answer counts as in the inbox, with its receipt.

    A refused answer is listed with its reason in `refused` where another one was accepted; otherwise the refusal is the
    error.
    """
    if body.stream:
        msg = "A run that goes on is followed elsewhere."
        raise Invalid(msg, code="stream_elsewhere", hint=f"GET /v1/runs/{run_id}/events")
    refused: list[Json] = []

    def answer() -> HumanTask:
        return _answer_all(context, _check_workflow(context, workflow_id, run_id, body), body, refused)

    def view(resumed: Waiting[RunResumedView], settled: SettledRun) -> WorkflowRunContinuedView:
        after = resumed.view(settled)
        return WorkflowRunContinuedView(
            **vars(after),
            workflow_id=settled.run.workflow_name,
            content=after.output_text,
            is_paused=bool(settled.tasks),
            step_requirements=[requirement(task) for task in settled.tasks],
            refused=refused,
        )

    resumed = wait_after_answer(context.store, answer)
    waiting = cast("Waiting[WorkflowRunContinuedView]", replace(resumed, view=partial(view, resumed)))
    if not body.background:
        return waiting
    return replace(waiting, seconds=0, settled=read_settled_run(context.store, run_id))


def _check_workflow(context: Context, workflow_id: str, run_id: str, body: ContinueRun) -> SettledRun:
    found = read_settled_run(context.store, run_id)
    run = found.run
    if workflow_id in {run.workflow_name, run.agent_name} and body.session_id in {None, run.metadata.get("session_id")}:
        return found
    msg = f"There is no run {run_id} of the workflow {workflow_id[:80]}{' in this session' if body.session_id else ''}."
    raise NotFound(msg, code="run_not_found")


def _answer_all(context: Context, paused: SettledRun, body: ContinueRun, refused: list[Json]) -> HumanTask:
    """Submit every valid answer; return the last answered question."""
    with context.store.read() as tx:
        resolved = tasks.resolved_steps(tx, paused.run.id)
    answers = match_answers(paused.run.id, paused.tasks, resolved, body.step_requirements)
    for _, answer in answers:
        for field in ("content", "values", "feedback"):
            check_length(field, getattr(answer, field), context.settings.limits.human_content_chars)
    last: HumanTask | None = None
    for number, (task, answer) in enumerate(answers):
        try:
            pin = context.settings.trust_root
            last = inbox.decide(context.store, task.id, answer, actor=context.actor, pin=pin)
        except AlreadyExecuted:
            raise
        except KneoError as error:
            if last is None and number == len(answers) - 1:
                raise
            refused.append({"continuation_id": task.id, "key": task.key, "error": error.code, "message": str(error)})
    assert last is not None, "the last one was taken or raised"
    return last


def requirement(task: HumanTask) -> Json:
    """Return the requirement of a question."""
    asks_first = task.position in {"before", "step"}
    return {
        "continuation_id": task.id,
        "request_id": task.request_id,
        "key": task.key,
        "step_id": task.step_path,
        "step_name": task.step_id,
        "requires_confirmation": asks_first and DecisionKind.APPROVED in task.decisions,
        "requires_user_input": task.answer_schema is not None,
        "requires_output_review": task.position == "after",
        "requires_iteration_review": task.position == "each",
        "requires_route_selection": task.position == "route",
        "requires_executor_resolution": task.position == "wait",
        "requires_error_decision": task.position == "error",
        "message": task.prompt,
        "user_input_schema": task.answer_schema,
        "available_choices": list(task.options) if task.options is not None else None,
        "allow_multiple_selections": task.multiple,
        "retry_count": task.attempt,
        "timeout_at": task.deadline_at,
        "on_timeout": task.on_timeout,
        "subject": task.subject,
        "subject_digest": task.subject_digest,
    }


def match_answers(
    run_id: str,
    waiting: Sequence[HumanTask],
    asked: Sequence[frozenset[str]],
    requirements: Sequence[ResolvedRequirement],
) -> list[tuple[HumanTask, DecisionRequest]]:
    """Match the requirements that a caller resolved with the open questions of a run.

    Args:
        run_id: The run, for messages.
        waiting: The run's open questions.
        asked: The names of the step of each question that was open before.
        requirements: The requirements as the caller sent them; one that resolves nothing leaves its question open.

    Returns:
        Each question that is answered, with its answer.

    Raises:
        Conflict: ``run_state_conflict``: the run asks nothing, or nothing of the kind, or nothing is answered;
            ``several_pending``: a requirement fits several questions; ``question_not_named``: the run or the step has asked
            before, and a requirement names no question.
        Usage: a requirement says two things at once, or two of them are about one question.
    """
    resolved = [(one, answer) for one in requirements if (answer := _answer(one)) is not None]
    answers = [(_find_task(run_id, waiting, asked, one), answer) for one, answer in resolved]
    if not answers:
        keys = [task.key for task in waiting]
        msg = f"No requirement answers a question of the run {run_id}."
        hint = f"It asks: {', '.join(keys) or 'nothing'}. Set confirmed, user_input, edited_output, selected_choices or value."
        raise Conflict(msg, code="run_state_conflict", hint=hint, pending=keys)
    if len({task.id for task, _ in answers}) < len(answers):
        msg = "Two requirements answer the same question."
        raise Usage(msg)
    return [(task, replace(answer, request_id=task.request_id)) for task, answer in answers]


def _find_task(
    run_id: str, waiting: Sequence[HumanTask], asked: Sequence[frozenset[str]], one: ResolvedRequirement
) -> HumanTask:
    key = one.continuation_id or one.key
    if key is not None:
        return find_pending(run_id, waiting, key)
    step = one.step_id or one.step_name
    fitting = [task for task in waiting if step in {None, task.step_path, task.step_id}]
    if not fitting:
        return find_pending(run_id, waiting, str(step))  # which says what it asks instead
    task = find_pending(run_id, fitting, None)
    if one.subject_digest is None:
        check_unnamed(task, sum(step is None or step in names for names in asked))
    return task


def _answer(one: ResolvedRequirement) -> DecisionRequest | None:
    """Return the answer that a requirement makes, without the id of its request; ``None`` where it resolves nothing."""
    shown = DecisionRequest(request_id="", decision=DecisionKind.APPROVED, expect_digest=one.subject_digest)
    resolutions = {
        "user_input": one.user_input,
        "edited_output": one.edited_output,
        "selected_choices": one.selected_choices,
        "decision": one.decision,
        "value": one.value,
    }
    names = [name for name, value in resolutions.items() if value is not None]
    if one.confirmed is False:
        if set(names) - {"decision"}:
            msg = "A rejected requirement has no value."
            raise Usage(msg)
        return replace(shown, decision=DecisionKind.REJECTED, feedback=one.rejection_feedback)
    if len(names) > 1:
        msg = f"A requirement has one of {', '.join(resolutions)}."
        raise Usage(msg)
    if not names:
        return shown if one.confirmed is True else None
    return _resolved(shown, one, names[0])


def _resolved(shown: DecisionRequest, one: ResolvedRequirement, name: str) -> DecisionRequest:
    match name:
        case "user_input":
            return replace(shown, values=one.user_input)
        case "edited_output":
            text = one.edited_output
            content = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
            return replace(shown, decision=DecisionKind.EDITED, content=content)
        case "selected_choices":
            choices = tuple(one.selected_choices or ())
            return replace(shown, decision=DecisionKind.SELECTED, selected_options=choices)
        case "decision":
            return replace(shown, decision=DecisionKind.SELECTED, selected_option=one.decision)
        case _:
            return replace(shown, decision=DecisionKind.PROVIDED, content=one.value)
