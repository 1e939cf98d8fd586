"""Writing of imported history: inserts alone, so that no row of this installation is changed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import insert, select

from kneo.records.run import IMPORTED
from kneo.store import audit, history, runs
from kneo.store.engine import Tx, insert_many_ignoring_duplicates
from kneo.store.published.conversion import RunHistory
from kneo.store.tables import audit_events, imported_audit_events, tasks
from kneo.store.tables import runs as run_rows
from kneo.store.task_rows import store_task

FINISHED = "import.finished"


def sources_of(tx: Tx, run_ids: Collection[str]) -> Mapping[str, str | None]:
    """Return the source of each of these runs that exists; ``None`` for a run of this installation."""
    found = tx.connection.execute(select(run_rows.c.id, run_rows.c.metadata).where(run_rows.c.id.in_(list(run_ids))))
    marks = {row.id: (row.metadata or {}).get(IMPORTED) for row in found}
    return {run_id: mark.get("source") if isinstance(mark, dict) else None for run_id, mark in marks.items()}


def insert_history(tx: Tx, past: RunHistory) -> bool:
    """Insert a run with all that belongs to it; return false where its id exists."""
    if not runs.insert_ended(tx, past.run):
        return False
    history.insert_past(tx, past.steps, past.checkpoints, past.trace)
    if past.tasks:
        tx.connection.execute(insert(tasks), [store_task(task) for task in past.tasks])
    return True


def known_events(tx: Tx, source: str, ids: Collection[str]) -> frozenset[str]:
    """Return those of these audit events that were imported from a source."""
    table = imported_audit_events.c
    found = tx.connection.execute(select(table.id).where(table.source == source, table.id.in_(list(ids))))
    return frozenset(found.scalars())


def insert_events(tx: Tx, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert audit events of a source; known ones are skipped."""
    insert_many_ignoring_duplicates(tx, imported_audit_events, rows)


def record_finished(tx: Tx, actor: str, facts: Mapping[str, object], *, changed: bool) -> None:
    """Record the end of an import in the audit log, unless it changed nothing and the log has it."""
    rows = tx.connection.execute(select(audit_events.c.metadata).where(audit_events.c.event_type == FINISHED)).scalars()
    earlier = [json.loads(text) for text in rows]
    same = {"source": facts["source"], "audit_log_digest": facts["audit_log_digest"]}
    if changed or not any(same.items() <= one.items() for one in earlier):
        audit.record(tx, FINISHED, actor=actor, metadata=facts)


def list_imported_events(
    tx: Tx, *, run_id: str | None = None, limit: int = 100, offset: int = 0
) -> Sequence[Mapping[str, object]]:
    """List imported audit events, newest first."""
    table = imported_audit_events
    statement = select(table).order_by(table.c.at.desc(), table.c.id.desc()).limit(limit).offset(offset)
    if run_id is not None:
        statement = statement.where(table.c.run_id == run_id)
    return [row._asdict() for row in tx.connection.execute(statement)]
