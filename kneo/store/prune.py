"""Retention: deletion of old rows. Audit events, receipts and rows in use are never deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeAlias

from sqlalchemy import ColumnElement, Table, delete, exists, select, true

from kneo.clock import isoformat
from kneo.records.run import RunStatus
from kneo.records.task import TaskStatus
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store import agent_sessions, idempotency
from kneo.store.engine import Store, Tx
from kneo.store.tables import (
    agent_journal,
    checkpoints,
    journal_entries,
    model_usage,
    outbox,
    runs,
    specs,
    steps,
    task_events,
    task_links,
    tasks,
    trace_events,
)

BATCH = 500
"""Rows of one transaction, which bounds the wait of other writers."""

FINAL = (
    RunStatus.SUCCEEDED,
    RunStatus.FAILED,
    RunStatus.CANCELLED,
    RunStatus.EXPIRED,
    RunStatus.TIMED_OUT,
)
RESOLVED = (TaskStatus.APPLIED, TaskStatus.EXPIRED, TaskStatus.CANCELLED)


GoOn: TypeAlias = Callable[[], bool]
"""Returns whether to delete another batch."""


def always() -> bool:
    """Continue until nothing is left to delete."""
    return True


def prune_runs(
    store: Store, older_than: timedelta, statuses: Sequence[RunStatus] = FINAL, *, go_on: GoOn = always
) -> int:
    """Delete runs that ended long enough ago, with their rows in other tables except the audit log."""
    return _prune_runs(store, older_than, statuses, true(), go_on)


def prune_calls(store: Store, older_than: timedelta, *, go_on: GoOn = always) -> int:
    """Delete calls of other programs that ended long enough ago and that no person decided."""
    is_decided = exists().where(tasks.c.run_id == runs.c.id, tasks.c.decision.is_not(None))
    return _prune_runs(store, older_than, FINAL, (runs.c.target == CALL_TARGET) & ~is_decided, go_on)


def _prune_runs(
    store: Store, older_than: timedelta, statuses: Sequence[RunStatus], which: ColumnElement[bool], go_on: GoOn
) -> int:
    allowed = [status for status in statuses if status in FINAL]

    def batch(tx: Tx) -> int:
        old = select(runs.c.id).where(runs.c.status.in_(allowed), runs.c.updated_at < _before(tx, older_than), which)
        ids = list(tx.connection.execute(old.limit(BATCH)).scalars())
        for table in (steps, journal_entries, agent_journal, checkpoints, trace_events, task_events, task_links, tasks):
            tx.connection.execute(delete(table).where(table.c.run_id.in_(ids)))
        _forget_messages(tx, "run_id", ids)
        tx.connection.execute(delete(runs).where(runs.c.id.in_(ids)))
        return len(ids)

    return _in_batches(store, batch, go_on)


def prune_specs(store: Store, older_than: timedelta, *, go_on: GoOn = always) -> int:
    """Delete frozen specs without a run."""
    unused = ~exists().where(runs.c.spec_digest == specs.c.digest)
    return _prune(store, specs, older_than, specs.c.created_at, unused, go_on)


def prune_checkpoints(store: Store, older_than: timedelta, *, go_on: GoOn = always) -> int:
    """Delete old checkpoints of runs that ended."""
    ended = exists().where(runs.c.id == checkpoints.c.run_id, runs.c.status.in_(FINAL))
    return _prune(store, checkpoints, older_than, checkpoints.c.created_at, ended, go_on)


def prune_tasks(store: Store, older_than: timedelta, *, go_on: GoOn = always) -> int:
    """Delete old resolved human tasks of runs that ended."""

    def batch(tx: Tx) -> int:
        # What people decided in a run that has not ended says which of its texts its session may keep.
        needed = exists().where(runs.c.id == tasks.c.run_id, runs.c.status.not_in(FINAL))
        resolved = tasks.c.status.in_(RESOLVED), tasks.c.updated_at < _before(tx, older_than)
        old = select(tasks.c.id).where(*resolved, ~needed)
        ids = list(tx.connection.execute(old.limit(BATCH)).scalars())
        for table in (task_events, task_links):
            tx.connection.execute(delete(table).where(table.c.task_id.in_(ids)))
        _forget_messages(tx, "continuation_id", ids)
        tx.connection.execute(delete(tasks).where(tasks.c.id.in_(ids)))
        return len(ids)

    return _in_batches(store, batch, go_on)


def _forget_messages(tx: Tx, about: str, ids: Sequence[str]) -> None:
    """Delete messages about runs or tasks; those about releases stay, so that none is sent twice."""
    if ids:
        tx.connection.execute(delete(outbox).where(outbox.c[about].in_(ids)))


def prune_idempotency_keys(store: Store, older_than: timedelta, *, go_on: GoOn = always) -> int:
    """Delete old idempotency keys with their responses."""
    return _in_batches(store, lambda tx: idempotency.forget(tx, older_than), go_on)


def prune_usage(store: Store, older_than: timedelta, *, go_on: GoOn = always) -> int:
    """Delete the usage of models on days that ended long enough ago."""
    return _prune(store, model_usage, older_than, model_usage.c.day, true(), go_on)


def prune_sessions(store: Store, older_than: timedelta, *, go_on: GoOn = always) -> int:
    """Delete what agents remember of sessions that no run added to for this long."""
    return _in_batches(store, lambda tx: agent_sessions.prune(tx, older_than), go_on)


def _prune(
    store: Store,
    table: Table,
    older_than: timedelta,
    at: ColumnElement[str],
    done: ColumnElement[bool],
    go_on: GoOn,
) -> int:
    key = list(table.primary_key.columns)

    def batch(tx: Tx) -> int:
        # Locked, and checked again at the deletion: a run that starts in between keeps its rows.
        found = select(*key).where(at < _before(tx, older_than), done).limit(BATCH).with_for_update(skip_locked=True)
        old = tx.connection.execute(found).all()
        for row in old:
            matches = [column == value for column, value in zip(key, row, strict=True)]
            tx.connection.execute(delete(table).where(*matches, done))
        return len(old)

    return _in_batches(store, batch, go_on)


def _in_batches(store: Store, batch: Callable[[Tx], int], go_on: GoOn) -> int:
    deleted = 0
    while go_on() and (count := store.transact(batch)):
        deleted += count
    return deleted


def _before(tx: Tx, older_than: timedelta) -> str:
    return isoformat(tx.now - older_than)
