"""The evidence of a soak, read from its database and the effects' own log."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from soak.evidence import Evidence, Promotion, RunRow, StepRow, TaskRow, read_effects
from soak.faults import Faults
from soak.fleet import BUNDLE, Fleet
from soak.load import Load, is_left_alone
from sqlalchemy import func, select, text

from kneo.clock import SystemClock, parse_time
from kneo.records.task import UNRESOLVED
from kneo.store import audit, queue
from kneo.store.engine import Store, Tx
from kneo.store.migrate import open_store
from kneo.store.tables import audit_events, promotions, receipts, releases, runs, steps, tasks

T = TypeVar("T")

LEAST_WARM_UP = 30.0
"""Seconds of a process's life in which it may grow; twice what a start takes where that is longer."""


class Reader:
    """Reads of the database."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._store: Store = open_store(fleet.url, SystemClock())

    def close(self) -> None:
        self._store.close()

    def read(self, work: Callable[[Tx], T]) -> T:
        with self._store.read() as tx:
            return work(tx)

    def size(self) -> int:
        """Return the bytes of the database."""
        size = text("SELECT pg_database_size(current_database())")
        return self.read(lambda tx: int(tx.connection.execute(size).scalar_one()))

    def jobs(self) -> int:
        """Return the number of jobs in the queue."""
        return self.read(count_jobs)

    def unfinished(self) -> int:
        """Return how many runs neither ended nor wait for a task that people leave alone."""

        def count(tx: Tx) -> int:
            running = select(func.count()).select_from(runs).where(runs.c.status.in_(["running", "pending"]))
            asked = tx.connection.execute(select(tasks.c.id).where(tasks.c.status.in_(_UNRESOLVED))).scalars()
            waiting = sum(not is_left_alone(task_id) for task_id in asked)
            return int(tx.connection.execute(running).scalar_one()) + waiting

        return self.read(count)

    def evidence(self, load: Load, faults: Faults) -> Evidence:
        """Return what the soak left behind."""
        found = read_database(self._store)
        with self._store.read() as tx:
            return replace(
                found,
                started=tuple(load.started),
                sent=tuple(load.sent),
                effects=read_effects(self._fleet.effects),
                faults=tuple(faults.done),
                promotions=_promotions(tx),
                released=dict.fromkeys(("dev", "prod"), load.version),
                served=_served(tx),
                samples=tuple(self._fleet.samples),
                warm_up=max(LEAST_WARM_UP, 2 * self._fleet.start_seconds),
                ended_alone=tuple(self._fleet.ended_alone),
                poisoned_deaths=self._fleet.poisoned_deaths,
                waits=_waits(tx),
                failures=tuple(load.failures),
            )


def count_jobs(tx: Tx) -> int:
    """Return the number of jobs in the queue."""
    count = text(f"SELECT count(*) FROM {queue.SCHEMA}.procrastinate_jobs")
    return int(tx.connection.execute(count).scalar_one())


def read_database(store: Store) -> Evidence:
    """Return the runs, tasks and steps of a database, and whether its audit log is whole."""
    audit.seal(store)
    verdict = audit.verify(store)
    with store.read() as tx:
        return Evidence(
            runs=_runs(tx),
            tasks=_tasks(tx),
            steps=_steps(tx),
            jobs=count_jobs(tx),
            audit_problem=None if verdict.valid else str(verdict.problem),
        )


_UNRESOLVED = [status.value for status in UNRESOLVED]


def _runs(tx: Tx) -> tuple[RunRow, ...]:
    rows = tx.connection.execute(select(runs.c.id, runs.c.input_text, runs.c.status, runs.c.error))
    return tuple(
        RunRow(run_id, content, status, json.dumps(error) if error else None) for run_id, content, status, error in rows
    )


def _tasks(tx: Tx) -> tuple[TaskRow, ...]:
    decided = select(audit_events.c.continuation_id).where(audit_events.c.event_type == "human.decision")
    events = Counter(tx.connection.execute(decided).scalars())
    signed = Counter(tx.connection.execute(select(receipts.c.task_id)).scalars())
    rows = tx.connection.execute(select(tasks.c.id, tasks.c.run_id, tasks.c.status, tasks.c.decision))
    return tuple(
        TaskRow(
            task_id,
            run_id,
            status in _UNRESOLVED,
            decision["kind"] if decision else None,
            decision["actor"] if decision else None,
            events[task_id],
            signed[task_id],
        )
        for task_id, run_id, status, decision in rows
    )


def _waits(tx: Tx) -> tuple[float, ...]:
    asked = select(runs.c.created_at, func.min(tasks.c.created_at)).join(tasks, tasks.c.run_id == runs.c.id)
    rows = tx.connection.execute(asked.group_by(runs.c.id))
    return tuple((parse_time(question) - parse_time(start)).total_seconds() for start, question in rows)


def _steps(tx: Tx) -> tuple[StepRow, ...]:
    chosen = select(steps.c.run_id, steps.c.step_id, steps.c.idempotency_key)
    rows = tx.connection.execute(chosen.where(steps.c.kind == "function", steps.c.status == "completed"))
    return tuple(StepRow(*row) for row in rows)


def _promotions(tx: Tx) -> tuple[Promotion, ...]:
    columns = (promotions.c.environment, promotions.c.version)
    rows = tx.connection.execute(select(*columns, func.count()).where(promotions.c.bundle == BUNDLE).group_by(*columns))
    return tuple(Promotion(*row) for row in rows)


def _served(tx: Tx) -> dict[str, str]:
    rows = tx.connection.execute(select(releases.c.environment, releases.c.version).where(releases.c.bundle == BUNDLE))
    return {row.environment: row.version for row in rows}


@contextlib.contextmanager
def reading(fleet: Fleet) -> Iterator[Reader]:
    """Read the database of a fleet until a block ends."""
    reader = Reader(fleet)
    try:
        yield reader
    finally:
        reader.close()
