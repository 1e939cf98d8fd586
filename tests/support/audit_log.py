"""An audit log with events, and somebody who owns its database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy import select, text

from kneo.store import audit
from kneo.store.engine import Store, Tx
from kneo.store.tables import audit_chain, audit_checkpoints, audit_events, audit_nodes, audit_pending


def record(store: Store, count: int = 5) -> list[str]:
    ids = []
    for number in range(count):
        with store.write() as tx:
            event = audit.record(
                tx, "thing.done", actor="ann", run_id="run_1", environment="prod", metadata={"n": number, "ü": "≤"}
            )
            ids.append(event.id)
    return ids


def sealed(store: Store, count: int = 5) -> list[str]:
    ids = record(store, count)
    assert audit.seal(store) == count
    assert audit.verify(store).valid
    with store.read() as tx:
        in_order = [row.event_id for row in tx.connection.execute(select(audit_chain).order_by(audit_chain.c.seq))]
    assert set(in_order) == set(ids)
    return in_order


@contextlib.contextmanager
def hostile_admin(store: Store) -> Iterator[Tx]:
    """Write with everything that guards the log switched off, as the owner of the database can, and leave no trace of that."""
    with store.write() as tx:
        if store.is_sqlite:
            found = tx.connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
            for row in found:
                tx.connection.execute(text(f"DROP TRIGGER {row.name}"))
            yield tx
            for row in found:
                tx.connection.execute(text(row.sql))
            return
        names = [table.name for table in (audit_events, audit_chain, audit_pending, audit_nodes, audit_checkpoints)]
        for change in ("DISABLE", "ENABLE"):
            for name in names:
                tx.connection.execute(text(f"ALTER TABLE {name} {change} TRIGGER USER"))
            if change == "DISABLE":
                yield tx
