"""Checkpoints of the audit log and proofs of its events, for HTTP and for commands beside the database."""

from __future__ import annotations

from dataclasses import asdict

from kneo.errors import Invalid, NotFound
from kneo.records.audit import SealedEvent, leaf_of
from kneo.service.wire import Json, audit_event
from kneo.store import audit, audit_tree
from kneo.store.audit_tree import Checkpoint, Proof
from kneo.store.engine import Store, Tx
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
        made = _signed(tx, size, key)
        audit_tree.keep_checkpoint(tx, made)
    return made


def _signed(tx: Tx, size: int, key: PrivateKey) -> Checkpoint:
    root = audit_tree.root(tx, size)
    return Checkpoint(size=size, root=root, note=make_checkpoint(ORIGIN, size, root, key), created_at=tx.at)


def prove(store: Store, key: PrivateKey, seq: int, size: int | None) -> Json:
    """Prove an event against a signed checkpoint: everything needed to check it without us.

    Args:
        store: The database.
        key: The service's key.
        seq: The event's number.
        size: How long the log was at the checkpoint; None takes it as it is now.

    Raises:
        NotFound: there is no such event, or it was removed; the log was never so long.
    """
    made = _checkpoint(store, key)
    with store.read() as tx:
        if size is not None and size != made.size:
            if size > made.size:
                msg = f"The audit log has {made.size} events, and was never {size} long."
                raise NotFound(msg, code="audit_size_not_found")
            stored = next((item for item in audit_tree.checkpoints(tx) if item.size == size), None)
            made = stored or _signed(tx, size, key)
        proof = audit_tree.prove(tx, seq, made.size)
        event = audit.event_at(tx, seq)
    return {
        **asdict(proof),
        "path": list(proof.path),
        "checkpoint": made.note,
        "key": key.public.pem,
        **_event(event, proof),
    }


def _event(event: SealedEvent | None, proof: Proof) -> Json:
    try:
        canonical = event.event.canonical() if event is not None else None
    except Invalid:
        canonical = None
    if event is None or canonical is None or leaf_of(canonical) != proof.leaf:
        what = "is not there any more" if event is None else "is not what was sealed"
        msg = f"The audit event number {proof.seq} {what}: somebody changed the database."
        raise NotFound(
            msg, code="audit_event_changed", hint="kneo audit verify says where; keep the database as it is."
        )
    return {"event": audit_event(event), "canonical": canonical.decode()}
