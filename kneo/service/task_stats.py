"""Figures about reviewing as answers, for HTTP and for commands beside the database."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

from kneo.clock import first_id, isoformat, parse_duration
from kneo.errors import InvalidValue
from kneo.service.wire import Json
from kneo.store import task_statistics
from kneo.store.engine import Store
from kneo.tasks.review import edits_to_compare, review

TASKS = 5_000
"""Questions that figures are taken of, the newest."""

GATES = 200

SINCE_AT_MOST = timedelta(days=366)


def task_stats(store: Store, since: str, environment: str | None, workflow_name: str | None) -> Json:
    """Work out how people review, gate by gate.

    Args:
        store: The database.
        since: Questions asked in the last ``30d``, up to ``366d``.
        environment: Only those of this one.
        workflow_name: Only those of this one.

    Raises:
        Invalid: ``since`` is no duration, or too long.
    """
    lasts = parse_duration(since)
    if not timedelta(0) < lasts <= SINCE_AT_MOST:
        msg = f"Figures are of up to {SINCE_AT_MOST.days} days."
        raise InvalidValue(msg, field="since")
    with store.read() as tx:
        start, now = tx.now - lasts, tx.at
        first = first_id("cont", start)
        found = task_statistics.newest(tx, first, environment=environment, workflow_name=workflow_name, limit=TASKS + 1)
        kept = found[:TASKS]
        shown = task_statistics.subjects(tx, edits_to_compare(kept))
    gates = review(kept, shown)
    return {
        "since": isoformat(start),
        "until": now,
        "tasks": len(kept),
        "truncated": len(found) > TASKS or len(gates) > GATES,
        "gates": [asdict(gate) for gate in gates[:GATES]],
    }
