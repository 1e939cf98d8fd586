"""What somebody who looks into a full inbox waits for, and what time itself costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta

from benchmarks.inbox.populate import soon
from kneo.clock import ManualClock
from kneo.service.task_query import task_page
from kneo.state.run import RunStatus
from kneo.store import runs, task_counts, tasks
from kneo.store.engine import Store, Tx
from kneo.store.run_filter import RunFilter
from kneo.tasks.sweep import expire_due

TURNS = 15
TARGET_MS = 20.0
UNINDEXED = frozenset({"title", "title of answered too"})
"""Looks without a target: they have to read every title."""

ME = "person-1"


def looks(store: Store) -> dict[str, float]:
    """Measure each way to look, in milliseconds: the best of some turns, JSON included."""
    with store.read() as tx:
        run_id = tasks.list_tasks(tx, limit=1)[0].run_id
        middle = tasks.list_tasks(tx, limit=1, offset=count(tx) // 2)[0].id
    asked: dict[str, dict[str, object]] = {
        "inbox": {},
        "keyset page": {"after": middle},
        "keyset page by priority": {"after": middle, "sort_by": "priority", "sort_order": "desc"},
        "keyset page by due": {"after": _due(store), "sort_by": "due_at"},
        "by priority": {"sort_by": "priority", "sort_order": "desc"},
        "by due": {"sort_by": "due_at"},
        "environment": {"environment": "prod"},
        "kind": {"kind": "review"},
        "assignee": {"assignee": "person-3"},
        "claimed_by": {"claimed_by": "person-1"},
        "step_id": {"step_id": "step-7"},
        "workflow_name": {"workflow_name": "workflow-7"},
        "run_id": {"run_id": run_id},
        "status claimed": {"status": "claimed"},
        "pending": {"status": "pending"},
        "escalated": {"status": "escalated"},
        "overdue": {"status": "overdue"},
        "candidate=me": {"candidate": "me"},
        "title": {"q": "number 4242"},
        "title of answered too": {"q": "number 4242", "status": "all"},
        "environment and kind": {"environment": "prod", "kind": "review"},
    }
    found = {}
    for name, query in asked.items():
        found[name] = timed(store, lambda tx, it=query: json.dumps(task_page(tx, it, ME), ensure_ascii=False))
    found["summary"] = timed(store, task_counts.summary)
    found["paused runs"] = timed(store, lambda tx: runs.list_runs(tx, RunFilter(status=RunStatus.PAUSED), limit=100))
    return found


def page(store: Store) -> float:
    """Measure one page of the inbox, in milliseconds."""
    return timed(store, lambda tx: json.dumps(task_page(tx, {}, ME), ensure_ascii=False))


def count(tx: Tx) -> int:
    return task_counts.summary(tx).waiting


def _due(store: Store) -> str:
    with store.read() as tx:
        return tasks.list_tasks(tx, sort_by="due_at", limit=1, offset=1_000)[0].id


def timed(store: Store, work: Callable[[Tx], object]) -> float:
    """Measure in milliseconds, the best of some turns.

    SQLite works in this very process, so its processor time is everything there is to wait for, however busy the machine
    is; PostgreSQL works in another one, so there it is the time that passes.
    """
    clock = time.process_time if store.is_sqlite else time.perf_counter
    taken = []
    for _ in range(TURNS):
        with store.read() as tx:
            started = clock()
            work(tx)
            taken.append((clock() - started) * 1000)
    return round(min(taken), 2)


def sweep(store: Store, due: int, *, of: int) -> float:
    """Milliseconds that one sweep takes with so many tasks due, half of them reminders, half deadlines."""
    clock = store.clock
    assert isinstance(clock, ManualClock)
    soon(store, due, 60, of=of)
    clock.advance(timedelta(seconds=61))
    started = time.perf_counter()
    handled = expire_due(store)
    taken = (time.perf_counter() - started) * 1000
    assert handled == due, f"{handled} of {due} were handled"
    return round(taken, 1)


def idle_sweep(store: Store) -> float:
    """Milliseconds of a sweep that finds nothing to do."""
    taken = []
    for _ in range(TURNS):
        started = time.perf_counter()
        assert expire_due(store) == 0
        taken.append((time.perf_counter() - started) * 1000)
    return round(min(taken), 2)
