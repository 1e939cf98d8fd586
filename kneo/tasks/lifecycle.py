"""The lifecycle of a task: its events and notifications, its reminders, escalations and deadline, and its end."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from kneo import registry
from kneo.errors import Conflict, KneoError, Transient
from kneo.names import person_key
from kneo.notify.outbox import TaskNotice, post_task
from kneo.records.audit import AuditEvent
from kneo.records.run import RunError, RunStatus
from kneo.records.task import TAKES_OVER, UNRESOLVED, Candidates, HumanTask, TaskStatus
from kneo.settings import WEB_PUSH
from kneo.store import audit, oidc_people, push_subscriptions, runs, task_statistics, tasks
from kneo.store.engine import Store, Tx
from kneo.tasks import people
from kneo.tasks.people import known_name, may_still_answer
from kneo.tasks.receipts import NO_KEY, can_sign, write_receipt
from kneo.tasks.schedule import (
    TIMEOUT_POLICY,
    ScheduledEvent,
    TimeoutPolicy,
    add_seconds,
    next_at,
    remaining_escalations,
    scheduled_events,
)


def mark_applied(tx: Tx, task: HumanTask) -> None:
    """Mark a decided task as applied, in the transaction that applies the decision to the run."""
    runs.lock(tx, task.run_id)
    if not tasks.change(tx, task, status=TaskStatus.APPLIED):
        msg = f"{task.id} changed while its decision was applied."
        raise Conflict(msg, code="human_task_decided")
    record_event(tx, task, "applied", None)


def cancel_tasks(tx: Tx, run_id: str, *, reason: str, actor: str, only: Collection[str] | None = None) -> Sequence[str]:
    """Close the open tasks of a run: all of them when the run has ended, else ``only`` these."""
    runs.lock(tx, run_id)
    closed = []
    for task in tasks.unchecked_of_run(tx, run_id, UNRESOLVED | {TaskStatus.DECIDED}):
        if only is not None and task.id not in only:
            continue
        if tasks.withdraw(tx, task, {**task.metadata, "reason": reason}):
            record_event(tx, task, "cancelled", actor, {"reason": reason})
            closed.append(task.id)
    return closed


Facts = Mapping[str, object]


def record_event(
    tx: Tx, task: HumanTask, what: str, actor: str | None, facts: Facts | None = None, *, kept: Facts | None = None
) -> AuditEvent:
    """Record an event of a task; return its audit event.

    Args:
        tx: The transaction of the change.
        task: The task.
        what: The type: ``requested``, ``claimed``, ``decision`` and so on.
        actor: The person; ``None`` for a scheduled event.
        facts: Public data, also recorded in the audit log.
        kept: Texts of people, stored with the task only.
    """
    tasks.add_event(tx, task, what, actor, {**(facts or {}), **(kept or {})})
    return audit.record(
        tx,
        f"human.{what}",
        actor=actor,
        run_id=task.run_id,
        continuation_id=task.id,
        environment=task.environment,
        metadata=facts,
    )


MAX_PEOPLE = 50
"""People of one task that are notified individually; a larger group needs a channel of its own."""


def notify_people(tx: Tx, task: HumanTask, what: str, number: int = 0, more: Iterable[str] = ()) -> None:
    """Notify the channels of a task, unless it is for a program that makes a call itself.

    Args:
        tx: The transaction of the change.
        task: The task, as it is now.
        what: ``requested``, ``reminded`` or ``escalated``.
        number: Which reminder or escalation this is.
        more: Further channels.
    """
    if task.is_for_caller:
        return
    channels = [*task.plan.notify, *more]
    if channels:
        post_task(tx, channels, TaskNotice(task=task, what=what, number=number, people=tuple(people_asked(tx, task))))
    if push_subscriptions.exist(tx):
        post_task(tx, [WEB_PUSH], TaskNotice(task=task, what=what, number=number))


def is_asked(tx: Tx, task_id: str, person: str) -> bool:
    """Return whether an open task asks a person who may answer it: the assignee alone, where that is a known person."""
    task = tasks.get(tx, task_id)
    if task is None or task.status not in UNRESOLVED:
        return False
    assignee = known_name(tx, task.environment, task.assignee) if task.assignee else None
    is_another = assignee is not None and person_key(assignee) != person_key(person)
    return not is_another and may_still_answer(tx, task, person)


def people_asked(tx: Tx, task: HumanTask) -> list[str]:
    """Return the known people who are asked and may answer."""
    found: dict[str, None] = {}
    for name in _named(tx, task):
        if len(found) == MAX_PEOPLE:
            break
        known = known_name(tx, task.environment, name)
        if known is not None and may_still_answer(tx, task, known):
            found[known] = None
    return list(found)


def _named(tx: Tx, task: HumanTask) -> Iterator[str]:
    """Yield the assignee alone where there is one, the people of the group or role that is the assignee, else all candidates."""
    if task.assignee and known_name(tx, task.environment, task.assignee) is not None:
        yield task.assignee
        return
    if task.assignee:
        groups, roles = {task.assignee}, {task.assignee}
    else:
        yield from task.candidates.users
        groups, roles = set(task.candidates.groups), set(task.candidates.roles)
    rules = registry.find_declared(tx, task.environment)
    if rules is not None:
        for name, person in rules.spec.people.items():
            if groups.intersection(person.groups) or roles.intersection(person.roles):
                yield name
    if groups:
        yield from oidc_people.names_in(tx, groups, MAX_PEOPLE)


log = logging.getLogger("kneo.tasks")

BATCH = 200
"""Number of due tasks read at a time; each is processed in a transaction of its own."""


def process_due(store: Store) -> int:
    """Process the due events of all tasks; return the number of tasks. The cost grows with due tasks, not with open ones.

    A task whose events cannot be processed stays due, and delays no other: its environment's file may be of another version.
    """
    handled = failed = 0
    while True:
        with store.look() as tx:
            due = tasks.due(tx, BATCH, offset=failed)
        for task in due:
            try:
                with store.write() as tx:
                    handled += _handle(tx, task.id)
            except Transient:
                raise
            except KneoError as error:
                failed += 1
                facts = {"event": "task_overdue", "continuation_id": task.id, "run_id": task.run_id, "code": error.code}
                log.warning("the due events of %s cannot be processed: %s", task.id, error.message, extra=facts)
        if len(due) < BATCH:
            break
    with store.look() as tx:
        has_many = task_statistics.has_many(tx)
    if has_many:
        store.transact(task_statistics.fold)
    return handled


def _handle(tx: Tx, task_id: str) -> bool:
    current = tasks.get(tx, task_id)
    if current is None:
        return False
    runs.lock(tx, current.run_id)
    task = tasks.get(tx, task_id)
    if task is None or not is_due(tx, task):
        return False
    apply_due(tx, task)
    return True


def is_due(tx: Tx, task: HumanTask) -> bool:
    return task.next_at is not None and task.next_at <= tx.at


def apply_due(tx: Tx, task: HumanTask) -> None:
    """Apply all due events of one task, in their order. The caller has locked the task's run."""
    current: HumanTask | None = task
    while current is not None and is_due(tx, current):
        current = _apply_event(tx, current, scheduled_events(current)[0])


def _apply_event(tx: Tx, task: HumanTask, event: ScheduledEvent) -> HumanTask | None:
    """Apply one event; return ``None`` when it resolves the task."""
    match event.what:
        case "wake":
            return _changed(tx, task, "woken", {}, status=TaskStatus.OPEN, snoozed_until=None)
        case "remind":
            plan = replace(task.plan, reminded=task.plan.reminded + 1)
            after = _changed(tx, task, "reminded", {"assignee": task.assignee, "number": plan.reminded}, plan=plan)
            notify_people(tx, after, "reminded", plan.reminded)
            return after
        case "escalate":
            return _escalated(tx, task)
        case _ if task.is_for_caller:
            return _taken_over(tx, task)
        case _ if task.on_timeout == "escalate":
            return _escalated(tx, task, by_deadline=True)
        case _:
            _time_out(tx, task)
            return None


def _escalated(tx: Tx, task: HumanTask, *, by_deadline: bool = False) -> HumanTask:
    """Escalate a task to the next of its chain; at the end of the chain the task is marked as escalated and stays open."""
    chain = remaining_escalations(task)
    to = chain[0].to if chain else task.assignee
    deadline = task.deadline_at
    if by_deadline:
        # The next candidates have as much time as those before; the last ones have no deadline.
        deadline = add_seconds(tx.at, task.timeout_seconds) if chain and task.timeout_seconds else None
    changes: dict[str, object] = {
        "status": TaskStatus.OPEN,
        "claimed_by": None,
        "snoozed_until": None,
        "assignee": to,
        "escalated_at": tx.at,
        "escalation": task.escalation + 1,
        "deadline_at": deadline,
    }
    if chain:
        changes["candidates"] = people.widen_candidates(task.candidates, chain[0].to)
    facts = _facts(tx, task) | {"assignee": to, "from": task.assignee}
    after = _changed(tx, task, "escalated", facts, **changes)
    if chain and task.is_restricted:
        tasks.add_candidates(tx, task.id, people.candidate_rows(after, iter(())))
    notify_people(tx, after, "escalated", after.escalation, chain[0].notify if chain else ())
    return after


def _taken_over(tx: Tx, task: HumanTask) -> HumanTask:
    """Ask people what became of a call, because the program that began it has reported no result in time."""
    named = task.metadata[TAKES_OVER]
    assert isinstance(named, Mapping)
    candidates = Candidates(**{name: tuple(values) for name, values in named.items()})
    facts = _facts(tx, task) | {"assignee": None, "from": task.requester}
    after = _changed(
        tx,
        task,
        "escalated",
        facts,
        status=TaskStatus.OPEN,
        claimed_by=None,
        assignee=None,
        candidates=candidates,
        escalated_at=tx.at,
        escalation=1,
        deadline_at=None,
    )
    refused = (name for _, name in people.excluded(tx, after))
    tasks.add_candidates(tx, task.id, people.candidate_rows(after, refused))
    notify_people(tx, after, "escalated", after.escalation)
    return after


def _changed(tx: Tx, task: HumanTask, what: str, facts: dict[str, object], **changes: object) -> HumanTask:
    due_next = next_at(replace(task, **changes))  # type: ignore[arg-type]
    after = tasks.change(tx, task, **changes, next_at=due_next)
    assert after is not None, "the run is locked, so no other process changes its tasks"
    record_event(tx, task, what, None, facts)
    return after


def _time_out(tx: Tx, task: HumanTask) -> None:
    """Apply the timeout policy of a task."""
    policy = TimeoutPolicy(
        on_timeout=task.on_timeout,
        decisions=task.decisions,
        options=task.options or (),
        default_option=task.default_option,
    )
    decision = policy.decision(tx.at)
    # A decision that must be signed and cannot be has no effect: the run ends as without a timeout policy.
    signs = can_sign(tx, task)
    if decision is not None and signs:
        assert tasks.change(tx, task, status=TaskStatus.DECIDED, decision=decision), "the run is locked"
        runs.signal(tx, task.run_id)
        continues = not decision.effect and decision.kind != "rejected"
        facts = _facts(tx, task) | {"decision": decision.kind, "auto_continued": continues}
        event = record_event(tx, task, "continued" if continues else "expired", None, facts)
        write_receipt(tx, task, decision, event)
        return
    assert tasks.change(tx, task, status=TaskStatus.EXPIRED), "the run is locked"
    facts = _facts(tx, task) | {"auto_continued": False}
    message = f"{task.step_id} was not answered before {task.deadline_at}."
    if not signs:
        facts |= {"unsigned": NO_KEY, "not_taken": decision.kind if decision is not None else None}
        message += f" Its timeout decision has to be signed, and the service has no signing key ({NO_KEY})."
        log.warning(
            "the deadline of %s ended its run, because there is no service key to sign its decision with",
            task.id,
            extra={"event": "receipt_unsigned", "continuation_id": task.id, "run_id": task.run_id, "code": NO_KEY},
        )
    error = RunError(type="human_task_expired", message=message)
    runs.end(tx, task.run_id, RunStatus.EXPIRED, error, allowed=[RunStatus.PAUSED, RunStatus.RUNNING])
    cancel_tasks(tx, task.run_id, reason="run_expired", actor=TIMEOUT_POLICY)
    event = record_event(tx, task, "expired", None, facts)
    write_receipt(tx, task, None, event)


def _facts(tx: Tx, task: HumanTask) -> dict[str, object]:
    """Return the facts of a deadline or escalation: ``expired_at`` is the time at which it is processed."""
    return {
        "timeout_seconds": task.timeout_seconds,
        "expires_at": task.deadline_at,
        "expired_at": tx.at,
        "on_timeout": task.on_timeout,
        "original_assignee": _original_assignee(tx, task),
    }


def _original_assignee(tx: Tx, task: HumanTask) -> str | None:
    """Return the assignee before the first escalation."""
    if not task.escalation:
        return task.assignee
    escalated = next((event for event in tasks.events_of(tx, task.id) if event.type == "escalated"), None)
    before = escalated.data.get("from") if escalated is not None else task.assignee
    return str(before) if before is not None else None
