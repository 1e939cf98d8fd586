"""Audit events: recorded with the change they describe, sealed into the chain afterwards, checked from the start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import ColumnElement, Row, bindparam, delete, func, insert, select

from kneo.clock import new_id
from kneo.errors import Invalid
from kneo.state.audit import EMPTY_HEAD, AuditEvent, ChainVerdict, SealedEvent, head_of, leaf_of
from kneo.state.merkle import Frontier
from kneo.store import audit_tree
from kneo.store.engine import Store, Tx, lock_table
from kneo.store.prepared import Prepared
from kneo.store.prepared import Row as PreparedRow
from kneo.store.tables import audit_chain, audit_events, audit_pending

SEAL_BATCH = 1_000
"""Events that one sealing transaction takes; bounds how long it keeps other writers waiting."""

WALK_BATCH = 2_000

AnyRow = Row[*tuple[object, ...]]

_INSERT, _INSERT_PENDING = Prepared(insert(audit_events)), Prepared(insert(audit_pending))


def record(
    tx: Tx,
    event_type: str,
    *,
    actor: str | None,
    run_id: str | None = None,
    continuation_id: str | None = None,
    environment: str | None = None,
    metadata: Mapping[str, object] | None = None,
) -> AuditEvent:
    """Write an event in the transaction of its change.

    Raises:
        Invalid: the event has no canonical form, so it could never be sealed.
    """
    audited = AuditEvent(
        id=new_id("evt", tx.now),
        at=tx.at,
        event_type=event_type,
        actor=actor,
        run_id=run_id,
        continuation_id=continuation_id,
        environment=environment,
        metadata=metadata or {},
    )
    record_all(tx, [audited])
    return audited


def record_all(tx: Tx, events: Sequence[AuditEvent]) -> None:
    """Write many events at once; a first commit brings thousands.

    Raises:
        Invalid: one of them has no canonical form.
    """
    if not events:
        return
    for item in events:
        item.canonical()
    rows = [
        {
            "id": item.id,
            "at": item.at,
            "event_type": item.event_type,
            "actor": item.actor,
            "run_id": item.run_id,
            "continuation_id": item.continuation_id,
            "environment": item.environment,
            "metadata": json.dumps(item.metadata, sort_keys=True, ensure_ascii=False),
        }
        for item in events
    ]
    _INSERT.change_many(tx, rows)
    _INSERT_PENDING.change_many(tx, [{"event_id": item.id} for item in events])


def seal(store: Store) -> int:
    """Give every waiting event its place in the chain; return how many got one."""
    total = 0
    while True:
        with store.write() as tx:
            count = _seal_batch(tx)
        total += count
        if count < SEAL_BATCH:
            return total


_PENDING = Prepared(select(audit_pending.c.event_id).limit(1))
_WAITING = Prepared(
    select(audit_events)
    .where(audit_events.c.id.in_(select(audit_pending.c.event_id)))
    .order_by(audit_events.c.id)
    .limit(bindparam("most"))
)
_LINK, _UNLIST = (
    Prepared(insert(audit_chain)),
    Prepared(delete(audit_pending).where(audit_pending.c.event_id == bindparam("sealed"))),
)


def _seal_batch(tx: Tx) -> int:
    if _PENDING.first(tx, {}) is None:
        return 0
    lock_table(tx, "audit_chain")
    rows = _WAITING.rows(tx, {"most": SEAL_BATCH})
    seq, head = chain_head(tx)
    links = []
    for row in rows:
        leaf = _leaf(row)
        if leaf is None:
            continue  # somebody tampered with it while it waited; the others do not wait for it
        seq += 1
        head = head_of(head, leaf)
        links.append({"seq": seq, "event_id": row.id, "leaf": leaf, "head": head})
    if links:
        _LINK.change_many(tx, links)
        audit_tree.extend(tx, seq - len(links) + 1, [str(link["leaf"]) for link in links])
        _UNLIST.change_many(tx, [{"sealed": link["event_id"]} for link in links])
    return len(links)


_HEAD = Prepared(select(audit_chain.c.seq, audit_chain.c.head).order_by(audit_chain.c.seq.desc()).limit(1))


def chain_head(tx: Tx) -> tuple[int, str]:
    """Read the chain's size and head."""
    row = _HEAD.first(tx, {})
    return (row.seq, row.head) if row else (0, EMPTY_HEAD)


def verify(store: Store) -> ChainVerdict:
    """Walk the whole chain and compare every event with what was sealed.

    Finds an edited event, a removed or added one, and an edited link. A rewrite of the whole chain is found only by
    comparing ``head`` with one written down elsewhere.
    """
    with store.read() as tx:
        size, head, problem = 0, EMPTY_HEAD, None
        tree, said = Frontier(), {item.size: item.root for item in audit_tree.checkpoints(tx)}
        for row in _walk(tx):
            tree.add(row.leaf)
            problem = _problem(row, size + 1, head) or _contradicts(tree, said)
            if problem:
                return ChainVerdict(valid=False, size=size, head=head, pending=0, broken_at=size + 1, problem=problem)
            size, head = row.seq, row.head
        if said and max(said) > size:
            problem = f"a checkpoint of {max(said)} events exists, and the log has {size}"
            return ChainVerdict(valid=False, size=size, head=head, pending=0, broken_at=size + 1, problem=problem)
        waiting = tx.connection.execute(select(func.count()).select_from(audit_pending)).scalar_one()
        problem = _problem_outside(tx)
        return ChainVerdict(valid=problem is None, size=size, head=head, pending=waiting, problem=problem)


def _walk(tx: Tx) -> Iterator[AnyRow]:
    joined = audit_chain.outerjoin(audit_events, audit_chain.c.event_id == audit_events.c.id)
    statement = select(
        audit_chain.c.seq, audit_chain.c.leaf, audit_chain.c.head, audit_chain.c.event_id, audit_events
    ).select_from(joined)
    last = 0
    while True:
        rows = tx.connection.execute(
            statement.where(audit_chain.c.seq > last).order_by(audit_chain.c.seq).limit(WALK_BATCH)
        ).all()
        yield from rows
        if len(rows) < WALK_BATCH:
            return
        last = rows[-1].seq


def _problem_outside(tx: Tx) -> str | None:
    """Find an event that neither is in the chain nor waits for it, or one that waits and is not there."""
    chained = audit_events.outerjoin(audit_chain, audit_chain.c.event_id == audit_events.c.id)
    added = tx.connection.execute(
        select(audit_events.c.id)
        .select_from(chained.outerjoin(audit_pending, audit_pending.c.event_id == audit_events.c.id))
        .where(audit_chain.c.seq.is_(None), audit_pending.c.event_id.is_(None))
        .limit(1)
    ).scalar()
    if added is not None:
        return f"the event {added} was added beside the chain"
    removed = tx.connection.execute(
        select(audit_pending.c.event_id)
        .outerjoin(audit_events, audit_events.c.id == audit_pending.c.event_id)
        .where(audit_events.c.id.is_(None))
        .limit(1)
    ).scalar()
    return f"the event {removed} was removed before it was sealed" if removed is not None else None


def _problem(row: AnyRow, seq: int, head: str) -> str | None:
    if row.seq != seq:
        return f"number {seq} is missing from the chain"
    if row.id is None:
        return f"the event {row.event_id} was removed"
    if _leaf(row) != row.leaf:
        return f"the event {row.event_id} ({row.event_type}) is not what was sealed"
    if head_of(head, row.leaf) != row.head:
        return f"the link after event {row.event_id} does not follow from the one before"
    return None


def _contradicts(tree: Frontier, said: Mapping[int, str]) -> str | None:
    """Compare with the checkpoint of this size, if one was made."""
    if tree.size not in said or said[tree.size] == tree.root():
        return None
    return f"the first {tree.size} events are not those of the checkpoint that was made of them"


def event(tx: Tx, event_id: str) -> SealedEvent | None:
    """Read one event."""
    row = tx.connection.execute(
        select(audit_events, audit_chain.c.seq, audit_chain.c.leaf)
        .select_from(audit_events.outerjoin(audit_chain, audit_chain.c.event_id == audit_events.c.id))
        .where(audit_events.c.id == event_id)
    ).first()
    return SealedEvent(seq=row.seq, leaf=row.leaf, event=_event(row)) if row else None


def event_at(tx: Tx, seq: int) -> SealedEvent | None:
    """Read the event at a place of the chain."""
    found = tx.connection.execute(select(audit_chain.c.event_id).where(audit_chain.c.seq == seq)).scalar()
    return event(tx, str(found)) if found is not None else None


def events(
    tx: Tx,
    *,
    event_type: str | None = None,
    run_id: str | None = None,
    descending: bool = True,
    limit: int = 100,
    offset: int = 0,
) -> tuple[SealedEvent, ...]:
    """List events, newest first unless told otherwise."""
    rows = tx.connection.execute(
        select(audit_events, audit_chain.c.seq, audit_chain.c.leaf)
        .select_from(audit_events.outerjoin(audit_chain, audit_chain.c.event_id == audit_events.c.id))
        .where(*_conditions(event_type, run_id))
        .order_by(audit_events.c.id.desc() if descending else audit_events.c.id)
        .limit(limit)
        .offset(offset)
    ).all()
    return tuple(SealedEvent(seq=row.seq, leaf=row.leaf, event=_event(row)) for row in rows)


def count(tx: Tx, *, event_type: str | None = None, run_id: str | None = None) -> int:
    statement = select(func.count()).select_from(audit_events).where(*_conditions(event_type, run_id))
    return tx.connection.execute(statement).scalar_one()


def seq_of(tx: Tx, event_id: str) -> int | None:
    """Find an event's place in the chain; ``None`` while it waits to be sealed."""
    return tx.connection.execute(select(audit_chain.c.seq).where(audit_chain.c.event_id == event_id)).scalar()


def _conditions(event_type: str | None, run_id: str | None) -> list[ColumnElement[bool]]:
    wanted = []
    if event_type is not None:
        wanted.append(audit_events.c.event_type == event_type)
    if run_id is not None:
        wanted.append(audit_events.c.run_id == run_id)
    return wanted


def _event(row: AnyRow | PreparedRow) -> AuditEvent:
    return AuditEvent(
        id=row.id,
        at=row.at,
        event_type=row.event_type,
        actor=row.actor,
        run_id=row.run_id,
        continuation_id=row.continuation_id,
        environment=row.environment,
        metadata=_metadata(row.metadata),
    )


def _metadata(text: str) -> Mapping[str, object]:
    # Whoever can write here past the triggers must not be able to silence the log by making it unreadable.
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"unreadable": text}


def _leaf(row: AnyRow | PreparedRow) -> str | None:
    try:
        return leaf_of(_event(row).canonical())
    except Invalid:
        return None
