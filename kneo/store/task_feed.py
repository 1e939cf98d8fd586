"""The order in which events of tasks are read by those who follow them: positions that only grow as they are committed.

The id of an event is made before its transaction commits, so events become visible in another order than that of their
ids. A position is given afterwards, to events that are committed, by one transaction at a time: whoever has read up to a
position has read everything that will ever be before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, select, update

from kneo.errors import Conflict
from kneo.records.task import TaskEvent
from kneo.store.engine import Store, Tx, lock_table, upsert
from kneo.store.prepared import Prepared
from kneo.store.tables import task_events, task_feed
from kneo.store.tasks import EVENT, read_event

BATCH = 1_000
"""Events that one transaction gives positions to; bounds how long it keeps others waiting."""

BEGINNING = "0"
"""Stands for the id of the event before the first one."""

_WITHOUT = Prepared(
    select(task_events.c.id).where(task_events.c.seq.is_(None)).order_by(task_events.c.id).limit(bindparam("most"))
)
_LAST = Prepared(select(task_feed.c.last_seq))
_GIVE = Prepared(update(task_events).where(task_events.c.id == bindparam("event")).values(seq=bindparam("given")))


def number(store: Store) -> int:
    """Give a position to each event that has none; return how many got one."""
    total = 0
    while True:
        with store.read() as tx:
            if not has_unnumbered(tx):
                return total
        total += store.transact(_number_batch)


def has_unnumbered(tx: Tx) -> bool:
    """Return whether an event waits for its position."""
    return _WITHOUT.first(tx, {"most": 1}) is not None


def _number_batch(tx: Tx) -> int:
    # From here on one transaction at a time. What it then reads is committed, and what commits later comes after it.
    lock_table(tx, "task_feed")
    rows = _WITHOUT.rows(tx, {"most": BATCH})
    last = last_position(tx)
    _GIVE.change_many(tx, [{"given": last + at, "event": row.id} for at, row in enumerate(rows, start=1)])
    if rows:
        upsert(tx, task_feed, {"id": 1}, last_seq=last + len(rows))
    return len(rows)


def last_position(tx: Tx) -> int:
    """Return the last position that was given; 0 where none was."""
    row = _LAST.first(tx, {})
    return int(row.last_seq) if row is not None else 0


@dataclass(frozen=True)
class Cursor:
    """A place in the feed: after the event with an id."""

    event_id: str
    position: int


def find_cursor(store: Store, event_id: str | None) -> Cursor:
    """Find the place after an event; without one, after the newest.

    Raises:
        Conflict: ``unknown_event``: the event does not exist, so nobody can tell what came after it.
    """
    number(store)
    with store.read() as tx:
        if event_id is None:
            return _newest(tx)
        if event_id in {"", BEGINNING}:
            return Cursor(BEGINNING, 0)
        position = tx.connection.execute(select(task_events.c.seq).where(task_events.c.id == event_id)).scalar()
    if position is None:
        msg = (
            f"There is no event {event_id[:80]} of a task: it was deleted, or the database was restored from before it."
        )
        hint = "List the tasks, then follow without a last event; 0 follows from the first event that is kept."
        raise Conflict(msg, code="unknown_event", hint=hint)
    return Cursor(event_id, position)


def _newest(tx: Tx) -> Cursor:
    rows = select(task_events.c.id, task_events.c.seq).where(task_events.c.seq.is_not(None))
    row = tx.connection.execute(rows.order_by(task_events.c.seq.desc()).limit(1)).first()
    return Cursor(row.id, row.seq) if row is not None else Cursor(BEGINNING, 0)


def events_after(store: Store, position: int, limit: int = BATCH) -> tuple[tuple[int, TaskEvent], ...]:
    """Read the next events after a position, in their order, each with its own position."""
    number(store)
    with store.read() as tx:
        rows = tx.connection.execute(
            select(task_events.c.seq, *EVENT)
            .where(task_events.c.seq > position)
            .order_by(task_events.c.seq)
            .limit(limit)
        )
        return tuple((row.seq, read_event(row)) for row in rows)
