"""Opening, deciding and closing human tasks in the store.

A decision and its effect are two writes: the first is durable before anything else happens, so a crash between them
never asks again and never acts twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from kneo.tasks.deadline import POLICY, Silence
from kneo.tasks.receipts import write_receipt

DEFAULT_PROMPT = "Please approve or reject what is shown."
EXPIRE_BATCH = 200
"""Overdue tasks that one sweep takes in one transaction each."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What somebody is to be asked."""

    key: str
    """Stable name of the gate over resume and replay."""
    path: str
    step_id: str
    position: str
    human: Human
    subject: str
    decisions: tuple[DecisionKind, ...]
    on_reject: str = "stop"
    kind: str = "approval"
    prompt: str | None = None
    options: tuple[str, ...] | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the person should know beside the subject."""


def open_task(tx: Tx, run: Run, question: Question) -> HumanTask:
    """Ask a person on behalf of a run."""
    human, step_id = question.human, question.step_id
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
        key=question.key,
        kind=human.request_type or question.kind,
        status=TaskStatus.OPEN,
        version=0,
        title=human.title or human.description or f"{step_id} waits for a decision",
        prompt=question.prompt or human.prompt or human.description or DEFAULT_PROMPT,
        subject=question.subject,
        subject_digest=subject_digest(run, question.path, question.position, question.subject),
        options=question.options,
        default_option=human.default_option,
        decisions=question.decisions,
        assignee=human.assignee,
        timeout_seconds=human.timeout_seconds,
        on_timeout=human.on_timeout,
        on_reject=question.on_reject,
        deadline_at=deadline,
        escalated_at=None,
        decision=None,
        metadata=_shown(question),
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


def _shown(question: Question) -> dict[str, object]:
    human = question.human
    told = {
        "position": question.position,
        "step_path": question.path,
        "context": dict(human.context) if human.context else None,
        "priority": human.priority,
        "due_seconds": human.due,
        "facts": dict(question.facts) or None,
    }
    return {name: value for name, value in told.items() if value is not None}


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

    def work(tx: Tx) -> HumanTask:
        runs.lock(tx, find(tx, task_id).run_id)
        task = find(tx, task_id)
        decision = check_answer(task, answer, actor=actor, now=tx.now)
        return _record(tx, task, decision, event_type="human.decision")

    return store.transact(work)


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
    event = audit.record(
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
    write_receipt(tx, task, decision, event)
    return find(tx, task.id)


def mark_applied(tx: Tx, task: HumanTask) -> None:
    """Say that a decision's effect is part of the run now; in the transaction that makes it so."""
    runs.lock(tx, task.run_id)
    if not tasks.change(tx, task, status=TaskStatus.APPLIED):
        msg = f"{task.id} changed while its decision was applied."
        raise Conflict(msg, code="human_task_decided")


def cancel_tasks(tx: Tx, run_id: str, *, reason: str, actor: str, only: Collection[str] | None = None) -> Sequence[str]:
    """Close what a run asked and no longer needs: all of it when the run is over, else ``only`` these."""
    runs.lock(tx, run_id)
    closed = []
    for task in tasks.of_run(tx, run_id, UNRESOLVED | {TaskStatus.DECIDED}):
        if only is not None and task.id not in only:
            continue
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
    silence = Silence(
        on_timeout=task.on_timeout,
        decisions=task.decisions,
        options=task.options or (),
        default_option=task.default_option,
    )
    decision = silence.decision(tx.at)
    if decision is not None:
        if not tasks.change(tx, task, status=TaskStatus.DECIDED, decision=asdict(decision)):
            return False
        runs.wake(tx, task.run_id)
        kind = "human.continued" if decision.kind is DecisionKind.APPROVED else "human.expired"
        event = audit.record(tx, kind, actor=None, metadata=facts | {"decision": decision.kind}, **where)
        write_receipt(tx, task, decision, event)
        return True
    if not tasks.change(tx, task, status=TaskStatus.EXPIRED):
        return False
    error = RunError(type="human_task_expired", message=f"Nobody answered {task.step_id} before {task.deadline_at}.")
    runs.end(tx, task.run_id, RunStatus.EXPIRED, error, allowed=[RunStatus.PAUSED, RunStatus.RUNNING])
    cancel_tasks(tx, task.run_id, reason="run_expired", actor=POLICY)
    event = audit.record(tx, "human.expired", actor=None, metadata=facts, **where)
    write_receipt(tx, task, None, event)
    return True
