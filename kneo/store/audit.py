"""Audit events: recorded in the transaction of a change, sealed into the chain afterwards, verified from the first one."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, TypedDict, Unpack

from sqlalchemy import ColumnElement, Row, UnaryExpression, bindparam, delete, func, insert, select, update

from kneo.clock import first_id, isoformat, new_id, parse_time
from kneo.errors import Invalid, NotFound, Untrusted
from kneo.records.audit import (
    EMPTY_HEAD,
    EMPTY_ROOT,
    AuditEvent,
    ChainVerdict,
    Frontier,
    Kept,
    SealedEvent,
    head_of,
    leaf_of,
)
from kneo.store import append_only, audit_tree
from kneo.store.engine import Store, Tx, lock_table
from kneo.store.prepared import Prepared
from kneo.store.prepared import Row as PreparedRow
from kneo.store.reach import MOST_PARTS, Unindexed, first_of_each
from kneo.store.tables import audit_chain, audit_events, audit_pending
from kneo.trust.checkpoint import parse_checkpoint, read_checkpoint

if TYPE_CHECKING:
    from kneo.trust.keys import PublicKey
    from kneo.trust.record_mac import RecordMacs

log = logging.getLogger("kneo.audit")

SEAL_BATCH = 1_000
"""Events of one sealing transaction, which bounds the wait of other writers."""

WALK_BATCH = 2_000

MOST_WAITING = timedelta(minutes=1)
"""The longest time that an event may wait to be sealed; sealing runs every second."""

NOTHING_KEPT = Kept()

AnyRow = Row[*tuple[object, ...]]

_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode

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
    """Record an event in the transaction of its change.

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
    """Record many events in two statements; a first commit brings thousands.

    Raises:
        Invalid: one of them has no canonical form.
    """
    if not events:
        return
    rows = [
        vars(item) | {"mac": tx.macs.make(audit_events.name, item.canonical()), "metadata": _encode(item.metadata)}
        for item in events
    ]
    _INSERT.insert(tx, *rows)
    _INSERT_PENDING.insert(tx, *({"event_id": item.id} for item in events))


def seal(store: Store) -> int:
    """Seal all waiting events; return how many."""
    total = 0
    while True:
        with store.look() as tx:
            if _PENDING.first(tx, {}) is None:
                return total
        with store.write() as tx:
            count, read = _seal_batch(tx)
        total += count
        if read < SEAL_BATCH:
            return total


_PENDING = Prepared(select(audit_pending.c.event_id).where(audit_pending.c.unsealable.is_(False)).limit(1))
_WAITING = Prepared(
    select(audit_events)
    .where(audit_events.c.id.in_(select(audit_pending.c.event_id).where(audit_pending.c.unsealable.is_(False))))
    .order_by(audit_events.c.id)
    .limit(bindparam("most"))
)
_LINK, _UNLIST = (
    Prepared(insert(audit_chain)),
    Prepared(
        delete(audit_pending).where(
            audit_pending.c.event_id.in_(
                select(audit_chain.c.event_id).where(audit_chain.c.seq.between(bindparam("first"), bindparam("last")))
            )
        )
    ),
)
_LEAVE = Prepared(update(audit_pending).where(audit_pending.c.event_id == bindparam("left")))


def _seal_batch(tx: Tx) -> tuple[int, int]:
    """Seal a batch of waiting events; return how many were sealed, and how many were read."""
    lock_table(tx, "audit_chain")
    rows = _WAITING.rows(tx, {"most": SEAL_BATCH})
    seq, head = chain_head(tx)
    links, left = [], []
    for row in rows:
        leaf = _leaf(row)
        if leaf is None:
            left.append(row.id)
            continue
        seq += 1
        head = head_of(head, leaf)
        links.append({"seq": seq, "event_id": row.id, "leaf": leaf, "head": head})
    if links:
        audit_tree.extend(tx, seq - len(links) + 1, [str(link["leaf"]) for link in links])
        _LINK.insert(tx, *links)
        _UNLIST.change(tx, {"first": links[0]["seq"], "last": seq})
    if left:
        log.error("audit events cannot be sealed, because they were changed before: %s", ", ".join(left[:20]))
        _LEAVE.change_many(tx, [{"left": event_id, "unsealable": True} for event_id in left])
    return len(links), len(rows)


_HEAD = Prepared(select(audit_chain.c.seq, audit_chain.c.head).order_by(audit_chain.c.seq.desc()).limit(1))


def chain_head(tx: Tx) -> tuple[int, str]:
    """Read the chain's size and head."""
    row = _HEAD.first(tx, {})
    return (row.seq, row.head) if row else (0, EMPTY_HEAD)


def verify(
    store: Store, *, keys: Sequence[PublicKey] = (), kept: Kept = NOTHING_KEPT, waiting: timedelta | None = MOST_WAITING
) -> ChainVerdict:
    """Verify the whole chain: every event against its leaf, and the tree, checkpoints and triggers against the chain.

    Finds an edited event, a removed or added one, an edited link, a tree or checkpoint that is not that of the events, events
    that are not sealed, and triggers or views that could drop some. A rewrite of all of it with the service key is found only by
    comparison with a head or root that an auditor keeps elsewhere.

    Args:
        store: The database.
        keys: The public keys that signed checkpoints; without any, their signatures are not checked.
        kept: The heads and roots that an auditor keeps.
        waiting: The longest time an event may wait to be sealed; None for a copy, in which nothing is sealed.
    """
    with store.read() as tx:
        walked = _Walk(tx, kept)
        verdict = walked.verdict()
        if verdict.valid:
            problem = (
                _note_problem(walked.checkpoints, keys)
                or _problem_outside(tx)
                or (find_waiting_problem(tx, waiting) if waiting is not None else None)
                or append_only.find_problem(tx)
            )
            verdict = replace(verdict, valid=problem is None, problem=problem)
        return replace(verdict, signatures=bool(keys))


ADOPTED = "records.adopted"
"""The event of an operator who has adopted records; earlier events without a code were there then."""


class _CodeCount:
    """The events without a valid code after the first one that has one, in the order of the chain.

    Each such event was inserted, or lost its code, or a process without the service key recorded it.
    """

    def __init__(self, macs: RecordMacs) -> None:
        self._macs = macs
        self._begun = False
        self.without = 0

    def add(self, row: AnyRow) -> None:
        """Count an event whose leaf is that of its content."""
        if self._macs.head is None:
            return
        is_authentic = self._macs.is_valid(audit_events.name, _event(row).canonical(), row.mac)
        self._begun = self._begun or is_authentic
        if is_authentic and row.event_type == ADOPTED:
            self.without = 0
        elif self._begun and not is_authentic:
            self.without += 1


class _Walk:
    """A walk over the chain from its first event."""

    def __init__(self, tx: Tx, kept: Kept) -> None:
        self._tx = tx
        self.checkpoints = audit_tree.checkpoints(tx)
        self._stored = {item.size: item.root for item in self.checkpoints}
        self._kept = kept
        self._codes = _CodeCount(tx.macs)

    def verdict(self) -> ChainVerdict:
        size, head, problem = 0, EMPTY_HEAD, None
        tree, nodes = Frontier(), audit_tree.NodeCheck(self._tx)
        for row in _walk(self._tx):
            problem = _problem(row, size + 1, head)
            if problem:
                break
            nodes.add(tree.add(row.leaf))
            problem = self._contradicts(tree, row.head)
            if problem:
                break
            self._codes.add(row)
            size, head = row.seq, row.head
            if size % WALK_BATCH == 0 and (problem := nodes.problem()):
                break
        else:
            problem = self._missing(size) or nodes.problem() or nodes.problem_beyond(size)
            if not problem:
                waiting = self._tx.connection.execute(select(func.count()).select_from(audit_pending)).scalar_one()
                codes = self._codes.without
                return ChainVerdict(valid=True, size=size, head=head, pending=waiting, unauthenticated=codes)
        return ChainVerdict(valid=False, size=size, head=head, pending=0, broken_at=size + 1, problem=problem)

    def _contradicts(self, tree: Frontier, head: str) -> str | None:
        """Compare the events so far with the checkpoints and heads of this size."""
        size = tree.size
        if self._kept.heads.get(size, head) != head:
            return f"the head over the first {size} events is not the one that was kept"
        for roots, whose in ((self._stored, "that was made of them"), (self._kept.roots, "that was kept")):
            if size in roots and roots[size] != tree.root():
                return f"the first {size} events are not those of the checkpoint {whose}"
        return None

    def _missing(self, size: int) -> str | None:
        for sizes, what in (
            (self._stored, "checkpoint"),
            (self._kept.roots, "kept checkpoint"),
            (self._kept.heads, "kept head"),
        ):
            if sizes and max(sizes) > size:
                return f"a {what} of {max(sizes)} events exists, and the log has {size}"
        if self._kept.heads.get(0, EMPTY_HEAD) != EMPTY_HEAD or self._kept.roots.get(0, EMPTY_ROOT) != EMPTY_ROOT:
            return "what was kept of an empty log is not that of an empty log"
        return None


def _note_problem(stored: Sequence[audit_tree.Checkpoint], keys: Sequence[PublicKey]) -> str | None:
    """Compare the notes of stored checkpoints with their columns, and verify their signatures."""
    for item in stored:
        try:
            note = read_checkpoint(item.note, *keys) if keys else parse_checkpoint(item.note)
        except Untrusted:
            return (
                f"the checkpoint of {item.size} events is not signed with a key that was given; where the service key was "
                "replaced since, give the former one too, with --key"
            )
        except Invalid as error:
            return f"the note of the checkpoint of {item.size} events cannot be read: {error.message}"
        if (note.size, note.root) != (item.size, item.root):
            return f"the checkpoint of {item.size} events is stored with another root than the one that was signed"
    return None


def find_waiting_problem(tx: Tx, most: timedelta) -> str | None:
    """Return an event that cannot be sealed, or has waited longer than that, as a problem; ``None`` without one."""
    left = (
        select(audit_pending.c.event_id).where(audit_pending.c.unsealable.is_(True)).order_by(audit_pending.c.event_id)
    )
    changed = tx.connection.execute(left.limit(1)).scalar()
    if changed is not None:
        return f"the event {changed} was changed while it waited, so that it cannot be sealed"
    late = tx.connection.execute(
        select(audit_events.c.id)
        .join(audit_pending, audit_pending.c.event_id == audit_events.c.id)
        .where(audit_events.c.at < isoformat(tx.now - most))
        .order_by(audit_events.c.id)
        .limit(1)
    ).scalar()
    seconds = f"{most.total_seconds():.0f} seconds"
    return f"the event {late} has waited for more than {seconds} to be sealed" if late is not None else None


def _walk(tx: Tx, last: int = 0, end: int | None = None) -> Iterator[AnyRow]:
    """Yield the links of the chain, with their events, after the number ``last`` up to ``end``."""
    joined = audit_chain.outerjoin(audit_events, audit_chain.c.event_id == audit_events.c.id)
    statement = select(
        audit_chain.c.seq, audit_chain.c.leaf, audit_chain.c.head, audit_chain.c.event_id, audit_events
    ).select_from(joined)
    if end is not None:
        statement = statement.where(audit_chain.c.seq <= end)
    while True:
        rows = tx.connection.execute(
            statement.where(audit_chain.c.seq > last).order_by(audit_chain.c.seq).limit(WALK_BATCH)
        ).all()
        yield from rows
        if len(rows) < WALK_BATCH:
            return
        last = rows[-1].seq


def _problem_outside(tx: Tx) -> str | None:
    """Find an event that is neither in the chain nor waiting, or a waiting one that is missing."""
    chained = audit_events.outerjoin(audit_chain, audit_chain.c.event_id == audit_events.c.id)
    added = tx.connection.execute(
        select(audit_events.c.id)
        .select_from(chained.outerjoin(audit_pending, audit_pending.c.event_id == audit_events.c.id))
        .where(audit_chain.c.seq.is_(None), audit_pending.c.event_id.is_(None))
        .limit(1)
    ).scalar()
    if added is not None:
        return f"the event {added} was added outside the chain"
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


_SEALED = select(audit_events, audit_chain.c.seq, audit_chain.c.leaf).select_from(
    audit_events.outerjoin(audit_chain, audit_chain.c.event_id == audit_events.c.id)
)
_FIND = Prepared(_SEALED.where(audit_events.c.id == bindparam("of_event")))


def event(tx: Tx, event_id: str) -> SealedEvent | None:
    """Read one event."""
    row = _FIND.first(tx, {"of_event": event_id})
    return sealed(row, row.seq, row.leaf) if row else None


def sealed(row: AnyRow | PreparedRow, seq: int | None, leaf: str | None) -> SealedEvent:
    """Return the event of a row, with its place in the chain."""
    return SealedEvent(seq=seq, leaf=leaf, event=_event(row))


IDS_AT_ONCE = 500


def events_by_id(tx: Tx, ids: Collection[str]) -> Mapping[str, SealedEvent]:
    """Read events by their ids."""
    found: dict[str, SealedEvent] = {}
    ordered = sorted(ids)
    for start in range(0, len(ordered), IDS_AT_ONCE):
        for row in tx.connection.execute(_SEALED.where(audit_events.c.id.in_(ordered[start : start + IDS_AT_ONCE]))):
            found[row.id] = sealed(row, row.seq, row.leaf)
    return found


class RecordedEvent(NamedTuple):
    """An event as it is stored, and whether a process with the service key recorded it so.

    Events of versions that did not authenticate them are not authentic.
    """

    event: AuditEvent
    is_authentic: bool


def recorded_events(tx: Tx, environment: str, event_types: Collection[str]) -> tuple[RecordedEvent, ...]:
    """List the events of an environment of some types, oldest first."""
    here = audit_events.c.environment == environment, audit_events.c.event_type.in_(sorted(event_types))
    rows = tx.connection.execute(select(audit_events).where(*here).order_by(audit_events.c.id))
    found = ((_event(row), row.mac) for row in rows)
    return tuple(RecordedEvent(item, tx.macs.is_valid(audit_events.name, _canonical(item), mac)) for item, mac in found)


def _canonical(item: AuditEvent) -> bytes:
    """Return the canonical form of an event; an empty one where it was changed so that it has none."""
    try:
        return item.canonical()
    except Invalid:
        return b""


def count_types(tx: Tx, environment: str, event_types: Collection[str]) -> int:
    """Count the events of an environment of some types."""
    here = audit_events.c.environment == environment, audit_events.c.event_type.in_(sorted(event_types))
    return tx.connection.execute(select(func.count()).select_from(audit_events).where(*here)).scalar_one()


def event_at(tx: Tx, seq: int) -> SealedEvent | None:
    """Read the event with a sequence number of the chain."""
    event_id = tx.connection.execute(select(audit_chain.c.event_id).where(audit_chain.c.seq == seq)).scalar()
    return event(tx, str(event_id)) if event_id is not None else None


class AuditConditions(TypedDict, total=False):
    """Conditions on events, which all hold; ``None`` is no condition. Times are ISO-8601 texts, the end excluded."""

    event_type: str | None
    run_id: str | None
    environment: str | None
    actor: str | None
    created_after: str | None
    created_before: str | None


def events(
    tx: Tx,
    *,
    descending: bool = True,
    limit: int = 100,
    offset: int = 0,
    after: str | None = None,
    **where: Unpack[AuditConditions],
) -> tuple[SealedEvent, ...]:
    """List events, newest first by default; ``after`` is the id of the last event of the previous page."""
    row_id, names, conditions = audit_events.c.id, _environments(tx, where), _conditions(tx, where)
    if after is not None:
        conditions.append(row_id < after if descending else row_id > after)

    def order(key: ColumnElement[str]) -> Sequence[UnaryExpression[str]]:
        return [key.desc() if descending else key.asc()]

    if names and len(names) <= MOST_PARTS and where.get("run_id") is None:
        here = [audit_events.c.environment == name for name in names]
        statement = first_of_each(_SEALED, row_id, row_id, here, conditions, order, limit + offset)
    else:
        statement = _SEALED.where(*conditions).order_by(*order(row_id))
    rows = tx.connection.execute(statement.limit(limit).offset(offset)).all()
    return tuple(SealedEvent(seq=row.seq, leaf=row.leaf, event=_event(row)) for row in rows)


def count(tx: Tx, **where: Unpack[AuditConditions]) -> int:
    statement = select(func.count()).select_from(audit_events).where(*_conditions(tx, where))
    return tx.connection.execute(statement).scalar_one()


def sealed_range(tx: Tx, created_after: str | None, created_before: str | None) -> tuple[int, int]:
    """Return the numbers of the first and the last sealed event of a period; the last is below the first where it has none."""
    joined = audit_chain.join(audit_events, audit_chain.c.event_id == audit_events.c.id)
    where = _conditions(tx, {"created_after": created_after, "created_before": created_before})
    numbers = select(func.min(audit_chain.c.seq), func.max(audit_chain.c.seq)).select_from(joined).where(*where)
    first, last = tx.connection.execute(numbers).one()
    if first is not None:
        return first, last
    size, _ = chain_head(tx)
    return size + 1, size


def sealed_events(tx: Tx, first: int, last: int) -> Iterator[AuditEvent]:
    """Yield the sealed events with these numbers, in order.

    Raises:
        NotFound: ``audit_event_changed``: an event was removed, or is not what was sealed.
    """
    for row in _walk(tx, first - 1, last):
        if row.id is None or _leaf(row) != row.leaf:
            msg = f"Audit event {row.seq} is not the event that was sealed: the database was changed."
            hint = "Run kneo audit verify to find the place; keep the database as it is."
            raise NotFound(msg, code="audit_event_changed", hint=hint)
        yield _event(row)


def seq_of(tx: Tx, event_id: str) -> int | None:
    """Return the sequence number of an event; ``None`` while it waits to be sealed."""
    return tx.connection.execute(select(audit_chain.c.seq).where(audit_chain.c.event_id == event_id)).scalar()


def _environments(tx: Tx, where: AuditConditions) -> Sequence[str] | None:
    """Return the environments whose events are read; ``None`` for all events."""
    chosen = where.get("environment")
    if chosen is not None:
        return (chosen,) if tx.sees(chosen) else ()
    return sorted(tx.reach) if tx.reach is not None else None


def _conditions(tx: Tx, where: AuditConditions) -> list[ColumnElement[bool]]:
    columns = audit_events.c
    names, is_of_run = _environments(tx, where), where.get("run_id") is not None
    equal = {name: where.get(name) for name in ("event_type", "run_id", "actor")}
    # The index of environments has the type and the actor.
    column = (lambda name: columns[name]) if names is None or is_of_run else (lambda name: Unindexed(columns[name]))
    conditions = [column(name) == value for name, value in equal.items() if value is not None]
    if names is not None:
        conditions.append((Unindexed(columns.environment) if is_of_run else columns.environment).in_(names))
    # Ids sort by the time at which they were created.
    first, last = where.get("created_after"), where.get("created_before")
    if first is not None:
        conditions.append(columns.id >= first_id("evt", parse_time(first)))
    if last is not None:
        conditions.append(columns.id < first_id("evt", parse_time(last)))
    return conditions


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
    # A writer that bypasses the triggers must not stop the log by an unreadable event.
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
