"""Every way to look into the inbox is answered by an index, on both databases."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from builders import build_task
from sqlalchemy import Select, text

from kneo.records.task import TaskStatus
from kneo.store import tasks
from kneo.store.engine import Store, Tx
from kneo.store.task_filter import EVERY_TASK, SORTABLE, TaskFilter, counting, listing
from kneo.store.task_statistics import of_status

NOON = "2026-01-31T12:00:00.000000+00:00"
ME = ("user:ann", "group:prod/editors")

FILTERS = {
    "nothing": TaskFilter(),
    "environment": TaskFilter(environment="prod"),
    "kind": TaskFilter(kind="review"),
    "assignee": TaskFilter(assignee="ann"),
    "claimed_by": TaskFilter(claimed_by="ann"),
    "step_id": TaskFilter(step_id="approve"),
    "run_id": TaskFilter(run_id="run_1"),
    "workflow_name": TaskFilter(workflow_name="release"),
    "workflow_type": TaskFilter(workflow_type="sequential"),
    "claimed": TaskFilter(statuses={TaskStatus.CLAIMED}),
    "pending": TaskFilter(escalated=False),
    "escalated": TaskFilter(escalated=True),
    "overdue": TaskFilter(overdue_at=NOON),
    "candidate": TaskFilter(who=ME),
    "several": TaskFilter(environment="prod", assignee="ann", statuses={TaskStatus.CLAIMED}),
    "candidate in an environment": TaskFilter(environment="prod", who=ME),
}

FEW = {"run_id"}
"""What one of these leaves may be sorted."""


@pytest.fixture
def tx(store: Store) -> Iterator[Tx]:
    with store.write() as tx:
        for number, status in enumerate([*TaskStatus, *TaskStatus]):
            tasks.insert_task(tx, build_task(status=status, priority=number, resolved_at=None if number < 3 else NOON))
        if not store.is_sqlite:
            # Then any other way that there is, is taken: what is left of these says that there is none.
            for unwanted in ("seqscan", "sort", "incremental_sort", "bitmapscan"):
                tx.connection.execute(text(f"SET LOCAL enable_{unwanted} = off"))
        yield tx


def plan(tx: Tx, statement: Select[Any], values: dict[str, object]) -> list[str]:
    """Return the steps in which a database would do it."""
    explain = "EXPLAIN QUERY PLAN" if tx.connection.dialect.name == "sqlite" else "EXPLAIN"
    sql = statement.params(**values).compile(tx.connection, compile_kwargs={"literal_binds": True})
    return [str(row[-1]) for row in tx.connection.exec_driver_sql(f"{explain} {sql}")]


def reads_everything(steps: list[str]) -> bool:
    # On SQLite the primary key's index has every task there ever was.
    return any(
        step == "SCAN tasks" or "Seq Scan on tasks" in step or "SCAN tasks USING INDEX sqlite_" in step
        for step in steps
    )


def sorts(steps: list[str]) -> bool:
    return any("TEMP B-TREE FOR ORDER BY" in step or "Sort  (" in step for step in steps)


def test_every_filter_is_answered_in_every_order_without_sorting(tx: Tx):
    ways = itertools.product(FILTERS, SORTABLE, (False, True), ({}, {"after": "task_1"}))
    for name, sort_by, descending, after in ways:
        where = FILTERS[name]
        statement = listing(where.conditions, sort_by, descending=descending, after=bool(after))
        steps = plan(tx, statement, {**where.values, "most": 100, "skipped": 0, **after})
        assert not reads_everything(steps), (name, sort_by, steps)
        assert name in FEW or not sorts(steps), (name, sort_by, steps)


def test_tasks_are_counted_by_an_index(tx: Tx):
    for name, where in FILTERS.items():
        for part in where.parts():
            steps = plan(tx, counting(part.conditions), part.values)
            assert not reads_everything(steps), (name, steps)


@pytest.mark.parametrize("where", [EVERY_TASK, TaskFilter(statuses={TaskStatus.APPLIED})], ids=["all", "applied"])
def test_what_was_answered_is_listed_in_the_order_of_its_ids(tx: Tx, where: TaskFilter):
    statement = listing(where.conditions, "id", descending=True, after=False)
    assert not sorts(plan(tx, statement, {**where.values, "most": 100, "skipped": 0}))


def test_a_title_may_be_as_long_as_a_spec_lets_it_be(store: Store):
    title = "".join(chr(0x4E00 + number % 20_000) for number in range(9_000))
    with store.write() as tx:
        tasks.insert_task(tx, task := build_task(title=title))
        assert [found.id for found in tasks.list_tasks(tx, TaskFilter(text=title[-3:]))] == [task.id]


@pytest.mark.parametrize("sort_by", ["due_at", "expires_at"])
def test_what_has_no_such_time_comes_last(store: Store, sort_by: str):
    column = {"due_at": "due_at", "expires_at": "deadline_at"}[sort_by]
    with store.write() as tx:
        never, late, soon = (build_task(**{column: at}) for at in (None, "2026-03-01", "2026-02-01"))
        for task in (never, late, soon):
            tasks.insert_task(tx, task)
        listed = tasks.list_tasks(tx, sort_by=sort_by)
        assert [task.id for task in listed] == [soon.id, late.id, never.id]
        assert getattr(listed[-1], column) is None
        rest = tasks.list_tasks(tx, sort_by=sort_by, after=soon.id, descending=False)
        assert [task.id for task in rest] == [late.id, never.id]


@pytest.mark.parametrize("wanted", [{}, {"environment": "prod", "workflow_name": "release"}], ids=["all", "some"])
def test_figures_about_reviewing_read_what_they_are_of(tx: Tx, wanted: dict[str, str | None]):
    statement = of_status(TaskStatus.APPLIED, "cont_0", wanted, 100)
    steps = plan(tx, statement, {})
    assert not reads_everything(steps), steps
    assert any("ix_tasks_status" in step for step in steps), steps
