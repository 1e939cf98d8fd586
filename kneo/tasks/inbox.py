"""Opening, deciding and closing human tasks in the store.

A decision and its effect are two writes: the first is durable before anything else happens, so a crash between them
never asks again and never acts twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta

from kneo.clock import isoformat, new_id
from kneo.digest import digest_of_json
from kneo.errors import Conflict, NotFound
from kneo.spec.models import Human
from kneo.state.run import Run, RunError, RunStatus
from kneo.state.task import UNRESOLVED, Decision, DecisionKind, HumanTask, TaskStatus
from kneo.store import audit, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.tasks.answers import Answer, check_answer

DEFAULT_PROMPT = "Please approve or reject what is shown."
EXPIRE_BATCH = 200
"""Overdue tasks that one sweep takes in one transaction each."""


def open_task(
    tx: Tx, run: Run, *, path: str, step_id: str, human: Human, subject: str, position: str = "step"
) -> HumanTask:
    """Ask a person about ``subject`` on behalf of a run."""
    seconds = human.timeout_seconds or 0
    deadline = isoformat(tx.now + timedelta(seconds=seconds)) if seconds > 0 else None
    task = HumanTask(
        id=new_id("cont", tx.now),
        request_id=new_id("req", tx.now),
        run_id=run.id,
        environment=run.environment,
        workflow_name=run.workflow_name,
        workflow_type=run.workflow_type,
        step_id=step_id,
        key=f"{path}.{position}",
        kind=human.request_type or "approval",
        status=TaskStatus.OPEN,
        version=0,
        title=human.title or human.description or f"{step_id} waits for a decision",
        prompt=human.prompt or human.description or DEFAULT_PROMPT,
        subject=subject,
        subject_digest=subject_digest(run, path, position, subject),
        options=tuple(human.options) if human.options else None,
        default_option=human.default_option,
        decisions=tuple(DecisionKind(word) for word in human.decisions or DecisionKind),
        assignee=human.assignee,
        timeout_seconds=human.timeout_seconds,
        on_timeout=human.on_timeout,
        on_reject=human.on_reject or "stop",
        deadline_at=deadline,
        escalated_at=None,
        decision=None,
    )
    tasks.insert_task(tx, task)
    audit.record(
        tx,
        "human.requested",
        actor=run.requester,
        run_id=run.id,
        continuation_id=task.id,
        environment=run.environment,
        metadata={"request_id": task.request_id, "step_id": step_id, "subject_digest": task.subject_digest},
    )
    return task


def subject_digest(run: Run, path: str, position: str, subject: str) -> str:
    """Name exactly what a person is shown: the gate, the value, and the spec it came from."""
    bundle = run.release.digest if run.release else run.spec_digest
    return digest_of_json({"position": position, "step": path, "subject": subject, "bundle": bundle})


def decide(store: Store, task_id: str, answer: Answer, *, actor: str) -> HumanTask:
    """Record a person's decision and wake its run.

    Raises:
        NotFound: there is no such task.
        Conflict, NotAllowed: the answer does not fit; see ``check_answer``. Nothing was written.
    """
    with store.write() as tx:
        runs.lock(tx, find(tx, task_id).run_id)
        task = find(tx, task_id)
        decision = check_answer(task, answer, actor=actor, now=tx.now)
        return _record(tx, task, decision, event_type="human.decision")


def find(tx: Tx, task_id: str) -> HumanTask:
    """Read a task.

    Raises:
        NotFound: there is none.
    """
    task = tasks.get(tx, task_id)
    if task is None:
        msg = f"There is no human task {task_id[:80]}."
        raise NotFound(msg, hint="kneo human list shows the open ones.")
    return task


def _record(tx: Tx, task: HumanTask, decision: Decision, *, event_type: str) -> HumanTask:
    if not tasks.change(tx, task, status=TaskStatus.DECIDED, decision=asdict(decision)):
        msg = f"Somebody else answered {task.id} at the same moment."
        raise Conflict(msg, code="human_task_decided", continuation_id=task.id)
    runs.wake(tx, task.run_id)
    content = decision.content or ""
    audit.record(
        tx,
        event_type,
        actor=decision.actor,
        run_id=task.run_id,
        continuation_id=task.id,
        environment=task.environment,
        metadata={
            "request_id": task.request_id,
            "decision": decision.kind,
            "has_content": bool(content),
            "content_present": bool(content),
            "content_digest": digest_of_json(content) if content else None,
            "selected_option": decision.selected_option,
            "subject_digest": task.subject_digest,
            "by": decision.by,
        },
    )
    return find(tx, task.id)


def mark_applied(tx: Tx, task: HumanTask) -> None:
    """Say that a decision's effect is part of the run now; in the transaction that makes it so."""
    runs.lock(tx, task.run_id)
    if not tasks.change(tx, task, status=TaskStatus.APPLIED):
        msg = f"{task.id} changed while its decision was applied."
        raise Conflict(msg, code="human_task_decided")


def cancel_tasks(tx: Tx, run_id: str, *, reason: str, actor: str) -> Sequence[str]:
    """Close every unanswered task of a run that is over."""
    runs.lock(tx, run_id)
    closed = []
    for task in tasks.of_run(tx, run_id, UNRESOLVED | {TaskStatus.DECIDED}):
        if tasks.change(tx, task, status=TaskStatus.CANCELLED, metadata={**task.metadata, "reason": reason}):
            audit.record(
                tx,
                "human.cancelled",
                actor=actor,
                run_id=run_id,
                continuation_id=task.id,
                environment=task.environment,
                metadata={"reason": reason},
            )
            closed.append(task.id)
    return closed


def expire_due(store: Store) -> int:
    """Do what each overdue task says should happen at its deadline; return how many were handled."""
    handled = 0
    with store.read() as tx:
        overdue = tasks.due(tx, EXPIRE_BATCH)
    for task in overdue:
        with store.write() as tx:
            handled += _expire(tx, task)
    return handled


def _expire(tx: Tx, task: HumanTask) -> bool:
    runs.lock(tx, task.run_id)
    facts = {"timeout_seconds": task.timeout_seconds, "expires_at": task.deadline_at, "on_timeout": task.on_timeout}
    where = {"run_id": task.run_id, "continuation_id": task.id, "environment": task.environment}
    if task.on_timeout == "escalate":
        if not tasks.change(tx, task, escalated_at=tx.at):
            return False
        audit.record(tx, "human.escalated", actor=None, metadata=facts | {"assignee": task.assignee}, **where)
        return True
    if task.on_timeout == "continue":
        decision = Decision(
            kind=DecisionKind.APPROVED,
            content=None,
            selected_option=None,
            comment="continued at its deadline",
            actor="policy:timeout",
            by="policy:timeout",
            at=tx.at,
        )
        if not tasks.change(tx, task, status=TaskStatus.DECIDED, decision=asdict(decision)):
            return False
        runs.wake(tx, task.run_id)
        audit.record(tx, "human.continued", actor=None, metadata=facts, **where)
        return True
    if not tasks.change(tx, task, status=TaskStatus.EXPIRED):
        return False
    error = RunError(type="human_task_expired", message=f"Nobody answered {task.step_id} before {task.deadline_at}.")
    runs.end(tx, task.run_id, RunStatus.EXPIRED, error, allowed=[RunStatus.PAUSED, RunStatus.RUNNING])
    cancel_tasks(tx, task.run_id, reason="run_expired", actor="policy:timeout")
    audit.record(tx, "human.expired", actor=None, metadata=facts, **where)
    return True
