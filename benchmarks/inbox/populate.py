"""A full inbox: many open questions of every sort, and as many that were answered long ago."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from builders import build_run, build_task
from sqlalchemy import insert, select, text

from kneo.clock import isoformat, new_id
from kneo.records.run import RunStatus
from kneo.records.task import Candidates, HumanTask, Plan, TaskStatus
from kneo.store import runs, task_statistics, tasks
from kneo.store.engine import Store
from kneo.store.tables import runs as runs_table
from kneo.store.tables import task_candidates
from kneo.store.tables import tasks as tasks_table
from kneo.tasks.schedule import next_at

ENVIRONMENTS = ("dev", "staging", "prod")
KINDS = ("approval", "review", "correction", "selection", "freeform")
WORKFLOWS, STEPS, PEOPLE, GROUPS = 40, 200, 500, 20
BATCH = 2_000
T = TypeVar("T")
SUBJECT = "A draft of some length, as people are shown it. " * 20


def question(store: Store, number: int, *, answered: bool = False) -> HumanTask:
    """One of many tasks; what it is like follows from its number alone."""
    now = store.clock.now()
    restricted = number % 2 == 0
    asked = now - timedelta(minutes=number % 10_000)
    task = build_task(
        id=new_id("cont", now),
        request_id=new_id("req", now),
        run_id=new_id("run", now),
        environment=ENVIRONMENTS[number % len(ENVIRONMENTS)],
        kind=KINDS[number % len(KINDS)],
        workflow_name=f"workflow-{number % WORKFLOWS}",
        step_id=f"step-{number % STEPS}",
        title=f"Publish number {number}?",
        subject=SUBJECT,
        assignee=f"person-{number % PEOPLE}" if number % 3 == 0 else None,
        candidates=Candidates(groups=(f"group-{number % GROUPS}",)) if restricted else Candidates(),
        priority=number % 101,
        claimed_by=f"person-{number % PEOPLE}" if number % 10 == 1 else None,
        status=TaskStatus.CLAIMED if number % 10 == 1 else TaskStatus.OPEN,
        escalation=1 if number % 100 == 7 else 0,
        due_at=isoformat(asked + timedelta(days=6)) if number % 2 else None,
        deadline_at=isoformat(now + timedelta(days=30 + number % 30)),
        timeout_seconds=2_592_000,
        on_timeout="reject",
        plan=Plan(remind=(40 * 86_400,)),
        created_at=isoformat(now),
        updated_at=isoformat(now),
    )
    if answered:
        return replace(task, status=TaskStatus.APPLIED, resolved_at=isoformat(now), next_at=None)
    return replace(task, next_at=next_at(task))


def fill(store: Store, count: int, *, answered: int = 0, paused: int = 0, ended: int = 0) -> None:
    """Add open tasks, answered ones, the paused runs of the first so many open ones, and runs that have ended.

    Rows are copied from one that the store wrote itself: a hundred thousand insertions one by one would take minutes.
    """
    template = _template(store)
    # Answered ones are the older ones, which a look at what waits must not have to pass.
    done = [question(store, number, answered=True) for number in range(answered)]
    open_tasks = [question(store, number) for number in range(count)]
    for batch in _batches([*done, *open_tasks]):
        with store.write() as tx:
            tx.connection.execute(insert(tasks_table), [template | _row(task) for task in batch])
            named = [
                {"candidate": f"group:{task.environment}/{group}", "task_id": task.id}
                for task in batch
                if task.resolved_at is None
                for group in task.candidates.groups
            ]
            if named:
                tx.connection.execute(insert(task_candidates), named)
            if waiting := [(task, 1) for task in batch if task.resolved_at is None]:
                task_statistics.add(tx, waiting)
    _add_runs(store, open_tasks[:paused], ended)
    with store.write() as tx:
        while task_statistics.fold(tx):
            pass
    if not store.is_sqlite:
        # What autovacuum does on a server that has it on.
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def soon(store: Store, count: int, seconds: int, *, of: int) -> None:
    """Let so many open tasks be due in a while: half of them to be reminded, half at their deadline."""
    at = isoformat(store.clock.now() + timedelta(seconds=seconds))
    with store.write() as tx:
        found = tasks.list_tasks(tx, limit=of)[:count]
        for number, task in enumerate(found):
            if number % 2:
                changed = replace(task, plan=Plan(remind=()), deadline_at=at)
            else:
                changed = replace(task, plan=Plan(remind=(seconds,)))
            tasks.change(tx, task, plan=changed.plan, deadline_at=changed.deadline_at, next_at=next_at(changed))


def _template(store: Store) -> dict[str, object]:
    """What the store writes for a task, read back as it is in the table, and gone again."""
    with store.write() as tx:
        task = question(store, 0)
        tasks.insert_task(tx, task)
        row = dict(tx.connection.execute(select(tasks_table).where(tasks_table.c.id == task.id)).one()._mapping)  # noqa: SLF001 - SQLAlchemy's public name
        tx.connection.execute(tasks_table.delete().where(tasks_table.c.id == task.id))
        task_statistics.add(tx, [(task, -1)])
    return row


def _row(task: HumanTask) -> Mapping[str, object]:
    names = [
        "id",
        "request_id",
        "run_id",
        "environment",
        "kind",
        "workflow_name",
        "step_id",
        "title",
        "subject",
        "assignee",
        "priority",
        "claimed_by",
        "status",
        "escalation",
        "due_at",
        "deadline_at",
        "timeout_seconds",
        "on_timeout",
        "created_at",
        "updated_at",
        "resolved_at",
        "next_at",
    ]
    kept = {name: getattr(task, name) for name in names}
    candidates = {name: list(getattr(task.candidates, name)) for name in ("users", "groups", "roles", "exclude")}
    return kept | {"restricted": task.is_restricted, "candidates": candidates}


def _add_runs(store: Store, waiting: list[HumanTask], ended: int) -> None:
    with store.write() as tx:
        run = build_run(id=new_id("run", tx.now), status=RunStatus.PAUSED, input_text=SUBJECT, state={"text": SUBJECT})
        runs.insert_run(tx, run)
        row = dict(tx.connection.execute(select(runs_table).where(runs_table.c.id == run.id)).one()._mapping)  # noqa: SLF001 - SQLAlchemy's public name
        tx.connection.execute(runs_table.delete().where(runs_table.c.id == run.id))
    start = store.clock.now() - timedelta(days=30)
    over = [
        row
        | {
            "id": new_id("run", start),
            "status": (RunStatus.FAILED if number % 10 == 0 else RunStatus.SUCCEEDED).value,
            "environment": ENVIRONMENTS[number % len(ENVIRONMENTS)],
            "workflow_name": f"workflow-{number % WORKFLOWS}",
            "created_at": isoformat(start + timedelta(seconds=number)),
            "updated_at": isoformat(start + timedelta(seconds=number + 60)),
            "output_text": SUBJECT,
        }
        for number in range(ended)
    ]
    paused = [
        row
        | {
            "id": task.run_id,
            "environment": task.environment,
            "updated_at": isoformat(store.clock.now() - timedelta(seconds=number)),
        }
        for number, task in enumerate(waiting)
    ]
    for batch in _batches([*over, *paused]):
        with store.write() as tx:
            tx.connection.execute(insert(runs_table), batch)


def _batches(found: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(found), BATCH):
        yield found[start : start + BATCH]
