"""The rows of attestations: signed statements of facts about bundles, from files in Git."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from sqlalchemy import or_, select

from kneo.records.release import AttestationRecord
from kneo.store.authenticated import MAC, is_authentic, with_mac
from kneo.store.engine import Tx, upsert
from kneo.store.prepared import Row
from kneo.store.tables import attestations, audit_events

ACCEPTED = "attestation.accepted"
"""The type of the audit event of each row."""


def put(tx: Tx, item: AttestationRecord) -> None:
    """Store an attestation as seen now, or replace it by one of the same payload with other signatures."""
    row = with_mac(tx, attestations, vars(item) | {"first_seen_at": tx.at})
    values = {name: value for name, value in row.items() if name != "id"}
    upsert(tx, attestations, {"id": item.id}, **values)


def list_about(tx: Tx, subjects: Collection[str]) -> tuple[AttestationRecord, ...]:
    """List the attestations about some bundles, by their digests, in the order of their issue."""
    if not subjects:
        return ()
    about = attestations.c.subject.in_(sorted(subjects))
    rows = tx.connection.execute(
        select(attestations).where(about).order_by(attestations.c.issued_at, attestations.c.id)
    )
    return tuple(_record(row) for row in rows.all() if is_authentic(tx, attestations, row))


def list_by_id(tx: Tx, ids: Iterable[str]) -> tuple[AttestationRecord, ...]:
    """List attestations by their ids, in the order of their issue."""
    rows = tx.connection.execute(
        select(attestations)
        .where(attestations.c.id.in_(sorted(ids)))
        .order_by(attestations.c.issued_at, attestations.c.id)
    )
    return tuple(_record(row) for row in rows.all() if is_authentic(tx, attestations, row))


def _record(row: Row) -> AttestationRecord:
    return AttestationRecord(**{name: value for name, value in row._asdict().items() if name != MAC})


def find_lost(tx: Tx, subjects: Collection[str]) -> str | None:
    """Return the id of an attestation about one of some bundles that the audit log has and the registry does not."""
    about = or_(*(audit_events.c.metadata.contains(subject) for subject in sorted(subjects)))
    events = select(audit_events.c.metadata).where(audit_events.c.event_type == ACCEPTED, about)
    accepted = {str(json.loads(row.metadata)["attestation"]) for row in tx.connection.execute(events)}
    return min(accepted - {item.id for item in list_about(tx, subjects)}, default=None)
