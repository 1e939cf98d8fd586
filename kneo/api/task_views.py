"""Views of human tasks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, TypedDict

from pydantic import Field

from kneo.api.may_answer import MayAnswerView
from kneo.api.operation import Json
from kneo.api.page import PageView, SearchPeriod, view_of
from kneo.clock import parse_time
from kneo.records.run import Run
from kneo.records.task import HumanTask, TaskEvent
from kneo.tasks.schedule import remaining_escalations, scheduled_events

MAX_DIFF_LINES = 2_000
"""Lines of a subject that are compared with its previous version; comparing longer ones would cost too much."""


@dataclass(frozen=True, kw_only=True)
class HumanTaskView:
    """One task, open or decided."""

    id: str
    continuation_id: str
    run_id: str
    environment: str | None
    workflow_name: str | None
    workflow_kind: str | None
    status: str
    kind: str
    position: str
    step_path: str
    key: str
    headline: str
    attempt: int
    step_id: str
    current_input: str
    request: Json
    pending_human_request: Json
    pending_human_request_id: str
    candidates: Json
    quorum: Json
    votes: list[Json]
    consequences: Json
    timeout: Json | None
    assignee: str | None
    claimed_by: str | None
    snoozed_until: str | None
    priority: int
    due_at: str | None
    next_at: str | None
    next: list[Json]
    requester: str
    bundle_digest: str | None
    receipt: str | None
    expires_at: float | None
    escalated_at: float | None
    escalation: int
    decision: Json | None
    created_at: str
    updated_at: str
    resolved_at: str | None
    links: Json
    metadata: Json

    @classmethod
    def of(cls, task: HumanTask) -> HumanTaskView:
        """Build the view of a task."""
        request = human_request(task)
        return view_of(
            HumanTaskView,
            task,
            continuation_id=task.id,
            workflow_kind=task.workflow_type,
            status=task.status.value,
            headline=task.headline,
            current_input=task.subject,
            request=request,
            pending_human_request=request,
            pending_human_request_id=task.request_id,
            candidates={name: list(values) for name, values in asdict(task.candidates).items()},
            **votes_of(task),
            consequences=dict(task.consequences),
            timeout=_timeout(task),
            next=[{"what": one.what, "at": one.at} for one in scheduled_events(task)] if task.next_at else [],
            receipt=task.plan.receipt,
            expires_at=epoch(task.deadline_at),
            escalated_at=epoch(task.escalated_at),
            decision=_decision(task),
            links={"resume": f"/v1/human-tasks/{task.id}/resume", "run": f"/v1/runs/{task.run_id}"},
            metadata={"step_id": task.step_id, **task.metadata},
        )


@dataclass(frozen=True, kw_only=True)
class HumanTaskPageView(PageView):
    """One page of tasks."""

    tasks: list[HumanTaskView]
    next_after: str | None
    searched: Annotated[
        SearchPeriod | None,
        Field(description="The period of a text search that reaches resolved tasks; otherwise null."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class HumanTaskDetailView(HumanTaskView):
    """One task, the messages of its run until it opened, and whether the caller may decide it."""

    messages: list[Json]
    may_answer: MayAnswerView

    @classmethod
    def with_messages(
        cls, task: HumanTask, run: Run | None, outputs: Sequence[tuple[str, str, str]], may_answer: MayAnswerView
    ) -> HumanTaskDetailView:
        """Build the view of a task with the input of its run and the outputs of steps: path, text, end."""
        messages = [_message("user", None, run.input_text, run.created_at)] if run is not None else []
        messages += [_message("assistant", path, text, ended) for path, text, ended in outputs]
        return cls(**vars(HumanTaskView.of(task)), messages=messages, may_answer=may_answer)


def _message(role: str, name: str | None, content: str | None, at: str) -> Json:
    return {"role": role, "name": name, "content": content, "timestamp": at, "tool_call_id": None, "metadata": {}}


@dataclass(frozen=True, kw_only=True)
class TaskEventView:
    """One event of a task."""

    id: str
    continuation_id: str
    run_id: str
    type: str
    actor: str | None
    at: str
    data: Json

    @classmethod
    def of(cls, event: TaskEvent) -> TaskEventView:
        """Build the view of an event."""
        return view_of(
            cls,
            event,
            continuation_id=event.task_id,
            type=f"human.{event.type}",
            data=dict(event.data),
        )


def human_request(task: HumanTask) -> Json:
    """Return the request of a task: its question, its subject and the accepted decisions."""
    context = task.metadata.get("context")
    return {
        "id": task.request_id,
        "request_id": task.request_id,
        "type": task.kind,
        "title": task.title,
        "headline": task.headline,
        "prompt": task.prompt,
        "context": {"input_text": task.subject, **(context if isinstance(context, Mapping) else {})},
        "subject": {"value": task.subject, "previous": task.previous, "diff": _diff(task)},
        "subject_digest": task.subject_digest,
        "schema": task.answer_schema,
        "options": list(task.options) if task.options is not None else None,
        "default_option": task.default_option,
        "multiple": task.multiple,
        "decisions": [decision.value for decision in task.decisions],
        "requested_by": task.step_id,
        "assignee": task.assignee,
        "timeout_seconds": task.timeout_seconds,
        "on_timeout": task.on_timeout,
        "on_reject": task.on_reject,
        "deadline_epoch": epoch(task.deadline_at),
        **_escalated(task),
        "metadata": {**task.metadata, "position": task.position, "step_path": task.step_path},
    }


def _decision(task: HumanTask) -> Json | None:
    decision = task.decision
    if decision is None:
        return None
    use = task.granted_use
    return asdict(decision) | {
        "selected_options": list(decision.selected_options),
        "voters": list(decision.voters),
        **({"grant": {name: use[name] for name in ("id", "number", "terms_digest")}} if use is not None else {}),
    }


def _escalated(task: HumanTask) -> Json:
    """Return the time of the last escalation and the deadline before it; nothing where there was none."""
    if task.escalated_at is None:
        return {}
    created, seconds = epoch(task.created_at), task.timeout_seconds
    original = created + seconds if created is not None and seconds else None
    return {"escalated_at": epoch(task.escalated_at), "original_expires_at": original}


class Votes(TypedDict):
    """The fields of a view that show the votes of a task."""

    quorum: Json
    votes: list[Json]


def votes_of(task: HumanTask) -> Votes:
    """Return the votes of a task and the votes that its quorum needs."""
    return {
        "quorum": {
            "approvals": task.quorum.approvals,
            "have": sum(vote.decision != "rejected" for vote in task.votes),
            "each": [{"role": role, "approvals": number} for role, number in task.quorum.each],
            "order": task.quorum.order,
            "reject": task.quorum.reject,
        },
        "votes": [{"actor": vote.actor, "decision": vote.decision.value, "at": vote.at} for vote in task.votes],
    }


def _timeout(task: HumanTask) -> Json | None:
    if task.deadline_at is None:
        return None
    to = None
    if task.on_timeout == "escalate":
        chain = remaining_escalations(task)
        to = chain[0].to if chain else task.assignee
    return {"effect": task.on_timeout, "to": to, "at": task.deadline_at}


def _diff(task: HumanTask) -> str | None:
    """Return the unified diff from the version that was sent back to the subject."""
    if task.previous is None:
        return None
    before, after = task.previous.splitlines(), task.subject.splitlines()
    if len(before) + len(after) > MAX_DIFF_LINES:
        return None
    return "\n".join(difflib.unified_diff(before, after, "previous", "now", lineterm=""))


def epoch(at: str | None) -> float | None:
    """Return a time in seconds since 1970, the unit of deadlines in views."""
    return parse_time(at).timestamp() if at is not None else None
