"""Checkpoints of the audit log and proofs of its events, for HTTP and for commands beside the database."""

from __future__ import annotations

from dataclasses import asdict

from kneo.service.wire import Json, audit_event
from kneo.store import audit, audit_tree
from kneo.store.audit_tree import Checkpoint
from kneo.store.engine import Store
from kneo.trust.checkpoint import make_checkpoint
from kneo.trust.keys import PrivateKey

ORIGIN = "kneo/audit"
"""The name of the log in its checkpoints."""


def checkpoint(store: Store, key: PrivateKey) -> Json:
    """Return a signed checkpoint of the log as it is now."""
    return asdict(_checkpoint(store, key))


def _checkpoint(store: Store, key: PrivateKey) -> Checkpoint:
    audit.seal(store)
    with store.write() as tx:
        newest, size = audit_tree.newest_checkpoint(tx), audit_tree.size(tx)
        if newest is not None and newest.size == size:
            return newest
        root = audit_tree.root(tx, size)
        made = Checkpoint(size=size, root=root, note=make_checkpoint(ORIGIN, size, root, key), created_at=tx.at)
        audit_tree.keep_checkpoint(tx, made)
    return made


def prove(store: Store, key: PrivateKey, seq: int, size: int | None) -> Json:
    """Prove an event against a signed checkpoint: everything needed to check it without us.

    Raises:
        NotFound: there is no such event.
    """
    made = _checkpoint(store, key)
    with store.read() as tx:
        wanted = next((item for item in audit_tree.checkpoints(tx) if item.size == size), made)
        proof = audit_tree.prove(tx, seq, wanted.size)
        event = audit.event_at(tx, seq)
    assert event is not None
    return {
        **asdict(proof),
        "path": list(proof.path),
        "checkpoint": wanted.note,
        "key": key.public.pem,
        "event": audit_event(event),
        "canonical": event.event.canonical().decode(),
    }
