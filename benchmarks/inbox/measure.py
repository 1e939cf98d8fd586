"""What somebody who looks into a full inbox waits for, and what time itself costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from service_bench import serving

from benchmarks.inbox.populate import soon
from kneo.api.operation import Context, Principal
from kneo.api.runs import list_runs
from kneo.api.tasks import list_human_tasks, summarise_human_tasks
from kneo.clock import ManualClock
from kneo.roles import EVERYTHING
from kneo.service.event_streams import ReaderAccess, task_events
from kneo.service.routing import JsonResponse
from kneo.service.shared_reads import SharedReads
from kneo.settings import from_env
from kneo.store import task_feed, task_statistics, tasks
from kneo.store.change_feed import ChangeFeed
from kneo.store.engine import Store, Tx
from kneo.tasks.lifecycle import process_due

TURNS = 15
TARGET_MS = 20.0
UNINDEXED = frozenset({"title", "title of answered too"})
"""Looks without a target: they have to read every title."""

ME = "person-1"
LISTENERS = 20

Clock = Callable[[], float]


def clock_of(store: Store) -> Clock:
    """Choose what to measure by.

    SQLite works in this very process, so its processor time is everything there is to wait for, however busy the machine
    is; PostgreSQL works in another one, so there it is the time that passes.
    """
    return time.process_time if store.is_sqlite else time.perf_counter


def looks(store: Store, clock: Clock) -> dict[str, float]:
    """Measure each way to look, in milliseconds: the best of some turns, JSON included."""
    with store.read() as tx:
        run_id = tasks.list_tasks(tx, limit=1)[0].run_id
        middle = tasks.list_tasks(tx, limit=1, offset=count(tx) // 2)[0].id
        due = tasks.list_tasks(tx, sort_by="due_at", limit=1, offset=1_000)[0].id
    down = {"sort_order": "desc"}
    asked: dict[str, dict[str, object]] = {
        "inbox": {},
        "keyset page": {"after": middle},
        "keyset page by priority": {"after": middle, "sort_by": "priority", **down},
        "keyset page by due": {"after": due, "sort_by": "due_at"},
        "keyset page by expiry": {"after": middle, "sort_by": "expires_at"},
        "by priority": {"sort_by": "priority", **down},
        "by due": {"sort_by": "due_at"},
        "by expiry": {"sort_by": "expires_at"},
        "environment": {"environment": "prod"},
        "environment by priority": {"environment": "prod", "sort_by": "priority", **down},
        "kind": {"kind": "review"},
        "kind by expiry": {"kind": "review", "sort_by": "expires_at"},
        "assignee": {"assignee": "person-3"},
        "assignee by due": {"assignee": "person-3", "sort_by": "due_at"},
        "claimed_by": {"claimed_by": "person-1"},
        "step_id": {"step_id": "step-7"},
        "workflow_name": {"workflow_name": "workflow-7"},
        "workflow_kind": {"workflow_kind": "sequential"},
        "run_id": {"run_id": run_id},
        "status claimed": {"status": "claimed"},
        "claimed by due": {"status": "claimed", "sort_by": "due_at"},
        "pending": {"status": "pending"},
        "escalated": {"status": "escalated"},
        "overdue": {"status": "overdue"},
        "candidate=me": {"candidate": "me"},
        "candidate=me by priority": {"candidate": "me", "sort_by": "priority", **down},
        "title": {"q": "number 4242"},
        "title of answered too": {"q": "number 4242", "status": "all"},
        "environment and kind": {"environment": "prod", "kind": "review"},
        "environment and nobody's": {"environment": "prod", "assignee": "nobody"},
        "environment and workflow": {"environment": "prod", "workflow_name": "workflow-7"},
    }
    context = _context(store)
    found = {}
    for name, query in asked.items():
        found[name] = timed(store, clock, lambda _, it=query: _written(list_human_tasks(context, **it)))
    found["summary"] = timed(store, clock, lambda _: _written(summarise_human_tasks(context)))
    return found


def run_looks(store: Store, clock: Clock) -> dict[str, float]:
    """Measure pages of runs likewise."""
    asked: dict[str, dict[str, str]] = {
        "the last changed": {},
        "the last begun": {"sort_by": "created_at"},
        "failed": {"status": "failed"},
        "environment": {"environment": "prod"},
        "environment by begin": {"environment": "prod", "sort_by": "created_at"},
        "workflow": {"workflow_name": "workflow-7"},
        "paused, with what they ask": {"status": "paused"},
    }
    context = _context(store)
    return {
        name: timed(store, clock, lambda _, query=query: _written(list_runs(context, **query)))
        for name, query in asked.items()
    }


def served(store: Store, folder: Path, clock: Clock) -> dict[str, float]:
    """Measure requests for pages as a service answers them, its client's part included."""
    found = {}
    url = store.engine.url.render_as_string(hide_password=False)
    with serving(folder, url, workers=0) as service:
        for path in (
            "/human-tasks",
            "/human-tasks?sort_by=priority",
            "/human-tasks/summary",
            "/runs",
            "/runs?status=paused",
        ):
            found[f"GET {path}"] = _best(clock, lambda it=path: service.ask("GET", it).raise_for_status())
    return found


def told(store: Store) -> float:
    """Measure the processor time until everybody who follows the inbox has heard of one change, in milliseconds."""
    with store.read() as tx:
        task = tasks.list_tasks(tx, limit=1)[0]

    async def follow() -> float:
        feed = ChangeFeed(store)
        reads = SharedReads(feed)
        cursor, me = task_feed.find_cursor(store, None), _context(store).principal
        listeners = [task_events(reads, cursor, ReaderAccess(feed, me, ()), heartbeat=60) for _ in range(LISTENERS)]
        for listener in listeners:
            await anext(listener)  # the id from which a reader that comes back would continue
        taken = []
        for _ in range(TURNS):
            hearing = [asyncio.create_task(anext(listener)) for listener in listeners]
            await asyncio.sleep(0.3)
            started = time.process_time()
            await asyncio.to_thread(store.transact, lambda tx: tasks.add_event(tx, task, "commented", ME, {}))
            heard = await asyncio.gather(*hearing)
            taken.append((time.process_time() - started) * 1000)
            assert all(event is not None for event in heard)
        feed.stop()
        return min(taken)

    return round(asyncio.run(follow()), 2)


def _written(view: object) -> bytes:
    return JsonResponse(view).body


def _context(store: Store) -> Context:
    """Make the context of operations that only read."""
    return Context(
        store=store,
        settings=from_env(),
        principal=Principal(ME, frozenset({EVERYTHING})),
        project=None,
        make_starter=_no_runs,
        settle=_no_runs,
        drive=_no_runs,
    )


def _no_runs(*_: object) -> NoReturn:
    msg = "this benchmark executes no run"
    raise AssertionError(msg)


def page(store: Store, clock: Clock) -> float:
    """Measure one page of the inbox, in milliseconds."""
    return timed(store, clock, lambda _: _written(list_human_tasks(_context(store))))


def count(tx: Tx) -> int:
    return task_statistics.summary(tx).waiting


def timed(store: Store, clock: Clock, work: Callable[[Tx], object]) -> float:
    """Measure in milliseconds by a clock, the best of some turns."""

    def look() -> None:
        with store.read() as tx:
            work(tx)

    return _best(clock, look)


def _best(clock: Clock, work: Callable[[], object]) -> float:
    taken = []
    for _ in range(TURNS):
        started = clock()
        work()
        taken.append((clock() - started) * 1000)
    return round(min(taken), 2)


def sweep(store: Store, due: int, *, of: int) -> float:
    """Milliseconds that one sweep takes with so many tasks due, half of them reminders, half deadlines."""
    clock = store.clock
    assert isinstance(clock, ManualClock)
    soon(store, due, 60, of=of)
    clock.advance(timedelta(seconds=61))
    started = time.perf_counter()
    handled = process_due(store)
    taken = (time.perf_counter() - started) * 1000
    assert handled == due, f"{handled} of {due} were handled"
    return round(taken, 1)


def idle_sweep(store: Store) -> float:
    """Milliseconds of a sweep that finds nothing to do."""
    taken = []
    for _ in range(TURNS):
        started = time.perf_counter()
        assert process_due(store) == 0
        taken.append((time.perf_counter() - started) * 1000)
    return round(min(taken), 2)
