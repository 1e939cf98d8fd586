"""The events, notifications and end of a task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from kneo import registry
from kneo.errors import Conflict
from kneo.names import person_key
from kneo.notify.outbox import TaskNotice, post_task
from kneo.records.audit import AuditEvent
from kneo.records.task import UNRESOLVED, HumanTask, TaskStatus
from kneo.settings import WEB_PUSH
from kneo.store import audit, oidc_people, push_subscriptions, releases, runs, tasks
from kneo.store.engine import Tx
from kneo.tasks.people import known_name, may_still_answer


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
    for task in tasks.of_run(tx, run_id, UNRESOLVED | {TaskStatus.DECIDED}):
        if only is not None and task.id not in only:
            continue
        if tasks.change(tx, task, status=TaskStatus.CANCELLED, metadata={**task.metadata, "reason": reason}):
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
    """Notify the channels of a task.

    Args:
        tx: The transaction of the change.
        task: The task, as it is now.
        what: ``requested``, ``reminded`` or ``escalated``.
        number: Which reminder or escalation this is.
        more: Further channels.
    """
    channels = [*task.plan.notify, *more]
    if channels:
        post_task(tx, channels, TaskNotice(task=task, what=what, number=number, people=tuple(_asked(tx, task))))
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


def _asked(tx: Tx, task: HumanTask) -> list[str]:
    """Return the known people who may answer: the assignee alone where there is one, else all candidates."""
    found: dict[str, None] = {}
    for name in [task.assignee] if task.assignee else _named(tx, task):
        if len(found) == MAX_PEOPLE:
            break
        known = known_name(tx, task.environment, name)
        if known is not None and may_still_answer(tx, task, known):
            found[known] = None
    return list(found)


def _named(tx: Tx, task: HumanTask) -> Iterator[str]:
    yield from task.candidates.users
    groups, roles = set(task.candidates.groups), set(task.candidates.roles)
    if task.environment is not None and releases.environment(tx, task.environment) is not None:
        for name, person in registry.declared(tx, task.environment).spec.people.items():
            if groups.intersection(person.groups) or roles.intersection(person.roles):
                yield name
    if groups:
        yield from oidc_people.names_in(tx, groups, MAX_PEOPLE)
