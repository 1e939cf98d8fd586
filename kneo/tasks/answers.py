"""Whether an answer fits a task. Pure; nothing of a refused answer is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kneo.clock import isoformat
from kneo.errors import Conflict, Invalid, KneoError
from kneo.state.task import UNRESOLVED, Decision, DecisionKind, HumanTask, TaskStatus


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a person sends. ``request_id`` says which question is meant."""

    request_id: str
    decision: DecisionKind
    content: str | None = None
    selected_option: str | None = None
    comment: str | None = None
    expect_digest: str | None = None


class NotAllowed(Invalid):
    """The answer makes no sense for this task."""

    http_status = 422
    default_code = "decision_not_allowed"


def check_answer(task: HumanTask, answer: Answer, *, actor: str, now: datetime) -> Decision:
    """Turn an answer into a decision.

    Raises:
        Conflict: ``human_task_decided``, ``human_task_expired``, ``human_task_cancelled``, ``request_mismatch`` or
            ``subject_changed``.
        NotAllowed: ``decision_not_allowed``, ``content_required`` or ``unknown_option``.
    """
    check_unresolved(task, now)
    if answer.request_id != task.request_id:
        msg = f"The request {answer.request_id} is not what {task.id} asks now."
        raise Conflict(msg, code="request_mismatch", hint="Read the task again and answer what it shows.")
    if answer.expect_digest is not None and answer.expect_digest != task.subject_digest:
        msg = f"What {task.id} asks about is not what you saw."
        raise Conflict(msg, code="subject_changed", hint="Read the task again.", subject_digest=task.subject_digest)
    if answer.decision not in task.decisions:
        allowed = ", ".join(task.decisions)
        msg = f"{task.id} cannot be {answer.decision}; it takes: {allowed}."
        raise NotAllowed(msg, allowed=list(task.decisions))
    _check_content(task, answer)
    return Decision(
        kind=answer.decision,
        content=answer.content,
        selected_option=answer.selected_option,
        comment=answer.comment,
        actor=actor,
        by="person",
        at=isoformat(now),
    )


def _check_content(task: HumanTask, answer: Answer) -> None:
    if answer.decision in {DecisionKind.EDITED, DecisionKind.PROVIDED} and not (answer.content or "").strip():
        msg = f"{answer.decision} needs content; an empty one would silently approve what was shown."
        raise NotAllowed(msg, code="content_required", hint="Approve it, or send the text.")
    if answer.decision is not DecisionKind.SELECTED:
        return
    if not answer.selected_option:
        msg = "selected needs selected_option."
        raise NotAllowed(msg, code="content_required")
    if task.options is not None and answer.selected_option not in task.options:
        listed = ", ".join(task.options)
        msg = f"{answer.selected_option[:200]!r} is none of the options: {listed}."
        raise NotAllowed(msg, code="unknown_option", options=list(task.options))


def check_unresolved(task: HumanTask, now: datetime) -> None:
    """Refuse whatever comes too late."""
    if task.status in UNRESOLVED:
        late = task.deadline_at is not None and task.deadline_at <= isoformat(now) and task.escalated_at is None
        if not late:
            return
        raise _late(task, "human_task_expired", f"expired at {task.deadline_at}")
    codes = {TaskStatus.EXPIRED: "human_task_expired", TaskStatus.CANCELLED: "human_task_cancelled"}
    code = codes.get(task.status, "human_task_decided")
    if task.decision is not None:
        raise _late(task, code, f"was {task.decision.kind} by {task.decision.actor} at {task.decision.at}")
    raise _late(task, code, f"is {task.status}")


def _late(task: HumanTask, code: str, what: str) -> KneoError:
    expires = {"expires_at": task.deadline_at} if code == "human_task_expired" else {}
    return Conflict(f"{task.id} {what}.", code=code, continuation_id=task.id, **expires)
