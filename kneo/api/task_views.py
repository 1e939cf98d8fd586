"""How human tasks look in JSON: what the published clients read, and everything else there is to know."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict

from kneo.clock import parse_time
from kneo.records.task import Candidates, Decision, HumanTask, TaskEvent
from kneo.store.task_statistics import TaskSummary
from kneo.tasks.schedule import remaining_escalations, scheduled_events

Json = dict[str, object]

MAX_DIFF_LINES = 2_000
"""Lines of a subject that are compared with its previous version; comparing longer ones would cost too much."""


def human_request(task: HumanTask) -> Json:
    """What is asked."""
    return {
        "id": task.request_id,
        "request_id": task.request_id,
        "type": task.kind,
        "title": task.title,
        "prompt": task.prompt,
        "context": {"input_text": task.subject, **_shown(task, "context")},
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


def human_task(task: HumanTask) -> Json:
    """One task, open or answered."""
    request = human_request(task)
    return {
        "id": task.id,
        "continuation_id": task.id,
        "run_id": task.run_id,
        "environment": task.environment,
        "workflow_name": task.workflow_name,
        "workflow_kind": task.workflow_type,
        "status": task.status.value,
        "kind": task.kind,
        "position": task.position,
        "step_path": task.step_path,
        "key": task.key,
        "attempt": task.attempt,
        "step_id": task.step_id,
        "current_input": task.subject,
        "request": request,
        "pending_human_request": request,
        "pending_human_request_id": task.request_id,
        "candidates": _candidates(task.candidates),
        **votes_of(task),
        "consequences": dict(task.consequences),
        "timeout": _timeout(task),
        "assignee": task.assignee,
        "claimed_by": task.claimed_by,
        "snoozed_until": task.snoozed_until,
        "priority": task.priority,
        "due_at": task.due_at,
        "next_at": task.next_at,
        "next": [{"what": one.what, "at": one.at} for one in scheduled_events(task)] if task.next_at else [],
        "requester": task.requester,
        "bundle_digest": task.bundle_digest,
        "receipt": task.plan.receipt,
        "expires_at": request["deadline_epoch"],
        "escalated_at": epoch(task.escalated_at),
        "escalation": task.escalation,
        "decision": decision(task.decision) if task.decision else None,
        "created_at": task.created_at,
        "updated_at": task.updated_at,
        "resolved_at": task.resolved_at,
        "links": {"resume": f"/v1/human-tasks/{task.id}/resume", "run": f"/v1/runs/{task.run_id}"},
        "metadata": {"step_id": task.step_id, **task.metadata},
    }


def decision(said: Decision) -> Json:
    return asdict(said) | {"selected_options": list(said.selected_options), "voters": list(said.voters)}


def summary(counts: TaskSummary) -> Json:
    """What waits, in numbers."""
    return {
        "waiting": counts.waiting,
        "escalated": counts.escalated,
        "overdue": counts.overdue,
        "by_status": dict(counts.by_status),
        "by_kind": dict(counts.by_kind),
        "by_environment": dict(counts.by_environment),
    }


def event(item: TaskEvent) -> Json:
    """Something that happened to a task."""
    return {
        "id": item.id,
        "continuation_id": item.task_id,
        "run_id": item.run_id,
        "type": f"human.{item.type}",
        "actor": item.actor,
        "at": item.at,
        "data": dict(item.data),
    }


def _escalated(task: HumanTask) -> Json:
    """When it went on to somebody else, and when it had to be answered until then."""
    if task.escalated_at is None:
        return {}
    asked, seconds = epoch(task.created_at), task.timeout_seconds
    original = asked + seconds if asked is not None and seconds else None
    return {"escalated_at": epoch(task.escalated_at), "original_expires_at": original}


def _shown(task: HumanTask, name: str) -> Mapping[str, object]:
    found = task.metadata.get(name)
    return found if isinstance(found, Mapping) else {}


def _candidates(asked: Candidates) -> Json:
    return {
        "users": list(asked.users),
        "groups": list(asked.groups),
        "roles": list(asked.roles),
        "exclude": list(asked.exclude),
    }


def votes_of(task: HumanTask) -> Json:
    """Who said what so far, and how many have to."""
    votes = [{"actor": vote.actor, "decision": vote.decision.value, "at": vote.at} for vote in task.votes]
    return {"quorum": _quorum(task), "votes": votes}


def _quorum(task: HumanTask) -> Json:
    agreed = [vote for vote in task.votes if vote.decision != "rejected"]
    return {
        "approvals": task.quorum.approvals,
        "have": len(agreed),
        "each": [{"role": role, "approvals": number} for role, number in task.quorum.each],
        "order": task.quorum.order,
        "reject": task.quorum.reject,
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
    """Compare with what was sent back, as a unified diff."""
    if task.previous is None:
        return None
    before, after = task.previous.splitlines(), task.subject.splitlines()
    if len(before) + len(after) > MAX_DIFF_LINES:
        return None
    return "\n".join(difflib.unified_diff(before, after, "previous", "now", lineterm=""))


def epoch(at: str | None) -> float | None:
    """Say a time as the published clients read the ones that decide something: seconds since 1970."""
    return parse_time(at).timestamp() if at is not None else None
