"""The import itself: batch after batch, each in one transaction, so that an import that was killed continues where it was.

It writes by inserts alone, so that no row of this installation is changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import insert, select

from kneo.errors import Invalid
from kneo.extensions.kneo_serv.conversion import (
    MAX_CHECKPOINTS,
    MAX_EVENTS,
    MAX_PAYLOAD_CHARS,
    OPEN,
    RunHistory,
    SourceDecision,
    UnusableRow,
    convert,
    decision_of,
    imported_event,
)
from kneo.extensions.kneo_serv.source import PublishedDatabase
from kneo.records.run import IMPORTED
from kneo.store import audit, history, runs
from kneo.store.engine import Store, Tx, insert_many_ignoring_duplicates
from kneo.store.tables import audit_events, imported_audit_events, tasks
from kneo.store.tables import runs as run_rows
from kneo.store.task_filter import store_task
from kneo.store.tasks import authenticated

BATCH = 100
"""Runs or audit events of one transaction, which bounds the wait of other writers."""

MAX_LISTED = 100
"""Runs that a report lists; its counts are of all."""

NO_PLACE: Mapping[str, str] = {
    "idempotency_records": "A key belongs to the service that answered it; clients send new requests with new keys.",
    "run_queue": "Runs that had not ended are imported as cancelled.",
    "locks": "They belong to processes of the other platform.",
    "continuations": "They are positions of another engine; the question of each is imported as a task of its run.",
}
"""Tables of the source without a place here, and the reasons."""

Progress = Callable[[int, int], None]
"""Called after each batch of runs with how many of how many were read."""


def no_progress(_done: int, _total: int) -> None:
    """Report no progress."""


@dataclass(kw_only=True)
class ImportReport:
    """What an import did, or would do.

    Attributes:
        found: The number of rows of the source by table.
        imported: The number of new rows, by kind.
        present: The number of rows that an earlier import brought, by kind.
        ended: Runs that had not ended, and are imported as cancelled.
        refused: Rows without a place, with the reasons.
        checkpoints_left_out: Checkpoints that exceed a bound or cannot be read.
        audit_log_digest: A digest of the source's audit log.
    """

    found: Mapping[str, int]
    imported: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("runs", "steps", "checkpoints", "trace_events", "tasks", "audit_events"), 0
        )
    )
    present: dict[str, int] = field(default_factory=lambda: {"runs": 0, "audit_events": 0})
    ended: list[dict[str, object]] = field(default_factory=list)
    ended_count: int = 0
    refused: list[dict[str, object]] = field(default_factory=list)
    refused_count: int = 0
    checkpoints_left_out: int = 0
    audit_log_digest: str = ""

    def refuse(self, table: str, row_id: object, reason: str) -> None:
        """Count a row without a place."""
        self.refused_count += 1
        if len(self.refused) < MAX_LISTED:
            self.refused.append({"table": table, "id": str(row_id)[:80], "reason": reason})

    def add(self, past: RunHistory) -> None:
        """Count a new run."""
        counts = {
            "runs": 1,
            "steps": len(past.steps),
            "checkpoints": len(past.checkpoints),
            "trace_events": len(past.trace),
            "tasks": len(past.tasks),
        }
        for name, count in counts.items():
            self.imported[name] += count
        if past.was in OPEN:
            self.ended_count += 1
            if len(self.ended) < MAX_LISTED:
                facts = {"status": past.was, "workflow_name": past.run.workflow_name, "waited_for": past.waited_for}
                self.ended.append({"run_id": past.run.id, "created_at": past.run.created_at, **facts})

    @property
    def changed(self) -> bool:
        return any(self.imported.values())

    def not_imported(self) -> dict[str, dict[str, object]]:
        """Return what of the source has no place here, and why."""
        rows = {name: {"count": self.found[name], "reason": reason} for name, reason in NO_PLACE.items()}
        return {name: row for name, row in rows.items() if row["count"]}


def import_history(
    source: PublishedDatabase, store: Store | None, *, actor: str, now: str, dry_run: bool, progress: Progress
) -> ImportReport:
    """Import runs and the audit log.

    Args:
        source: The source.
        store: The database; ``None`` in a dry run where there is none yet.
        actor: The name for the audit log.
        now: The time of the import.
        dry_run: Whether to count alone.
        progress: Called after each batch.
    """
    report = ImportReport(found=source.counts)
    target_store = None if dry_run else store
    for batch in _batches(source, store, report, now, progress):
        if target_store is not None:
            target_store.transact(partial(_insert, batch=batch, report=report))
        else:
            for past in batch:
                report.add(past)
    _import_events(source, store, report, dry_run=dry_run)
    if target_store is not None:
        facts = {
            "source": source.id,
            "kind": source.kind,
            "schema": source.schema,
            "audit_log_digest": report.audit_log_digest,
            "imported": dict(report.imported),
            "ended": report.ended_count,
            "refused": report.refused_count,
        }
        target_store.transact(lambda tx: record_finished(tx, actor, facts, changed=report.changed))
    return report


def _insert(tx: Tx, batch: list[RunHistory], report: ImportReport) -> None:
    inserted = [past for past in batch if insert_history(tx, past)]
    for past in inserted:
        report.add(past)
    # Another import brought them since they were looked for.
    report.present["runs"] += len(batch) - len(inserted)


def _batches(
    source: PublishedDatabase, store: Store | None, report: ImportReport, now: str, progress: Progress
) -> Iterator[list[RunHistory]]:
    """Yield the runs to insert, in batches that are bounded by their number and by the size of their rows."""
    last, done, batch, size = None, 0, list[RunHistory](), 0
    while rows := source.runs_after(last, BATCH):
        last = _id_of(rows[-1].id)
        known = _sources(store, [str(row.id) for row in rows])
        for row in rows:
            done += 1
            if row.id in known:
                if known[str(row.id)] == source.id:
                    report.present["runs"] += 1
                else:
                    report.refuse("runs", row.id, "Another run has this id; it is left as it is.")
                continue
            try:
                checkpoints = source.checkpoints_of(str(row.id), MAX_CHECKPOINTS + 1)
                past = convert(row, checkpoints, _decisions(source, str(row.id)), source=source.id, at=now)
            except UnusableRow as error:
                report.refuse("runs", row.id, error.message)
                continue
            report.checkpoints_left_out += past.left_out
            batch.append(past)
            size += past.chars
            if len(batch) >= BATCH or size >= MAX_PAYLOAD_CHARS:
                yield batch
                batch, size = [], 0
        progress(done, source.counts["runs"])
    if batch:
        yield batch


def _decisions(source: PublishedDatabase, run_id: str) -> list[SourceDecision]:
    return [made for event in source.events_of(run_id, MAX_EVENTS) if (made := decision_of(event)) is not None]


def _import_events(source: PublishedDatabase, store: Store | None, report: ImportReport, *, dry_run: bool) -> None:
    last, digest = None, hashlib.sha256()
    while events := source.events_after(last, BATCH):
        last = _id_of(events[-1].id)
        rows = []
        for one in events:
            try:
                row = imported_event(one)
            except UnusableRow as error:
                report.refuse("audit_events", one.id, error.message)
                continue
            body = str(row["payload"]).encode()
            digest.update(len(body).to_bytes(8) + body)
            rows.append(row | {"source": source.id})
        known: frozenset[str] = frozenset()
        if store is not None:
            with store.read() as tx:
                known = known_events(tx, source.id, [str(row["id"]) for row in rows])
        new = [row for row in rows if row["id"] not in known]
        report.present["audit_events"] += len(known)
        report.imported["audit_events"] += len(new)
        if store is not None and not dry_run and new:
            store.transact(partial(insert_events, rows=new))
    report.audit_log_digest = f"sha256:{digest.hexdigest()}"


def _sources(store: Store | None, ids: list[str]) -> Mapping[str, str | None]:
    if store is None:
        return {}
    with store.read() as tx:
        return sources_of(tx, ids)


def _id_of(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    msg = "A row of the source has an id that is no text."
    raise Invalid(msg, code="import_unreadable", hint="Remove the row from a copy, and import that.")


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
        tx.connection.execute(insert(tasks), [store_task(authenticated(tx, task)) for task in past.tasks])
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
