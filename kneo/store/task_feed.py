"""The feed of task events: positions that grow in the order in which events become visible.

The id of an event is created before its transaction commits, so events become visible in another order than that of their ids.
One transaction at a time assigns positions to committed events, so that no event ever appears before a position that was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, bindparam, select, update

from kneo.errors import Conflict
from kneo.records.task import TaskEvent
from kneo.store.engine import Store, Tx, lock_table, upsert
from kneo.store.prepared import Prepared
from kneo.store.tables import task_events, task_feed, tasks
from kneo.store.tasks import EVENT, read_event

BATCH = 1_000
"""Events of one numbering transaction, which bounds the wait of other writers."""

SEARCHED = 10_000
"""The newest events among which the last one that a caller may read is searched. Without one the caller's cursor is the beginning."""

BEGINNING = "0"
"""The cursor before the first event."""

_UNNUMBERED = Prepared(
    select(task_events.c.id).where(task_events.c.seq.is_(None)).order_by(task_events.c.id).limit(bindparam("most"))
)
_LAST = Prepared(select(task_feed.c.last_seq))
_ASSIGN = Prepared(update(task_events).where(task_events.c.id == bindparam("event")).values(seq=bindparam("position")))


def number(store: Store) -> int:
    """Assign a position to each event without one; return how many."""
    total = 0
    while True:
        with store.look() as tx:
            if not has_unnumbered(tx):
                return total
        total += store.transact(_number_batch)


def has_unnumbered(tx: Tx) -> bool:
    """Return whether an event has no position yet."""
    return _UNNUMBERED.first(tx, {"most": 1}) is not None


def _number_batch(tx: Tx) -> int:
    # One transaction at a time from here: it reads committed events, and later commits get higher positions.
    lock_table(tx, "task_feed")
    rows = _UNNUMBERED.rows(tx, {"most": BATCH})
    last = last_position(tx)
    _ASSIGN.change_many(tx, [{"position": last + at, "event": row.id} for at, row in enumerate(rows, start=1)])
    if rows:
        upsert(tx, task_feed, {"id": 1}, last_seq=last + len(rows))
    return len(rows)


def last_position(tx: Tx) -> int:
    """Return the last assigned position; 0 where there is none."""
    row = _LAST.first(tx, {})
    return int(row.last_seq) if row is not None else 0


@dataclass(frozen=True)
class Cursor:
    """A position in the feed, after the event with this id."""

    event_id: str
    position: int


def find_cursor(store: Store, event_id: str | None) -> Cursor:
    """Return the cursor after an event that the caller may read; without an id, after the newest event.

    Raises:
        Conflict: ``unknown_event``: the event does not exist, so the events after it are unknown.
    """
    number(store)
    with store.read() as tx:
        if event_id is None:
            return _newest(tx)
        if event_id in {"", BEGINNING}:
            return Cursor(BEGINNING, 0)
        found = _visible(tx, select(task_events.c.id, task_events.c.seq).where(task_events.c.id == event_id))
    if found is None or found.seq is None:
        msg = f"There is no task event {event_id[:80]}: it was deleted, or the database was restored from an earlier backup."
        hint = "List the tasks, then follow without a last event; 0 follows from the first stored event."
        raise Conflict(msg, code="unknown_event", hint=hint)
    return Cursor(event_id, found.seq)


def _newest(tx: Tx) -> Cursor:
    newest = select(task_events.c.id, task_events.c.seq).where(task_events.c.seq.is_not(None))
    newest = newest.order_by(task_events.c.seq.desc())
    row = _visible(tx, newest.limit(SEARCHED if tx.reach is not None else 1))
    # After the newest event that the caller may read there is none for the caller yet.
    return Cursor(row.id if row is not None else BEGINNING, last_position(tx))


def _visible(tx: Tx, events: Select[tuple[str, int]]) -> Row[Any, Any] | None:
    """Return the newest of some events, of those that the transaction reads."""
    chosen = events.add_columns(task_events.c.task_id).subquery()
    statement = select(chosen.c.id, chosen.c.seq).order_by(chosen.c.seq.desc()).limit(1)
    if tx.reach is not None:
        statement = statement.join(tasks, tasks.c.id == chosen.c.task_id)
        statement = statement.where(tasks.c.environment.in_(sorted(tx.reach)))
    return tx.connection.execute(statement).first()


def events_after(store: Store, position: int, limit: int = BATCH) -> tuple[tuple[int, TaskEvent], ...]:
    """Read the next events after a position, in order, each with its position."""
    number(store)
    with store.read() as tx:
        rows = tx.connection.execute(
            select(task_events.c.seq, *EVENT)
            .where(task_events.c.seq > position)
            .order_by(task_events.c.seq)
            .limit(limit)
        )
        return tuple((row.seq, read_event(row)) for row in rows)
