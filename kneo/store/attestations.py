"""The rows of attestations: signed statements of facts about bundles, from files in Git."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pydantic_core import from_json
from sqlalchemy import ColumnElement, func, or_, select

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


def find_version(tx: Tx, subjects: Collection[str]) -> tuple[object, ...]:
    """Return what differs once an attestation about some bundles was added or removed: their number, and the events of all."""
    rows = select(func.count()).where(attestations.c.subject.in_(sorted(subjects))).scalar_subquery()
    events = select(rows, func.count(), func.max(audit_events.c.id)).where(audit_events.c.event_type == ACCEPTED)
    return tuple(tx.connection.execute(events).one())


def list_about(tx: Tx, subjects: Collection[str]) -> tuple[AttestationRecord, ...]:
    """List the attestations about some bundles, by their digests, in the order of their issue."""
    return _list(tx, attestations.c.subject.in_(sorted(subjects))) if subjects else ()


def list_by_id(tx: Tx, ids: Iterable[str]) -> tuple[AttestationRecord, ...]:
    """List attestations by their ids, in the order of their issue."""
    return _list(tx, attestations.c.id.in_(sorted(ids)))


def _list(tx: Tx, where: ColumnElement[bool]) -> tuple[AttestationRecord, ...]:
    rows = tx.connection.execute(
        select(attestations).where(where).order_by(attestations.c.issued_at, attestations.c.id)
    ).all()
    return tuple(_record(row) for row in rows if is_authentic(tx, attestations, row))


def _record(row: Row) -> AttestationRecord:
    return AttestationRecord(**{name: value for name, value in row._asdict().items() if name != MAC})


def find_lost(tx: Tx, subjects: Collection[str], present: Collection[str]) -> str | None:
    """Return the id of an attestation about one of some bundles that the audit log has and the registry does not.

    Args:
        tx: The transaction.
        subjects: The digests of the bundles.
        present: The ids of those that the registry has.
    """
    about = or_(*(audit_events.c.metadata.contains(subject) for subject in sorted(subjects)))
    events = select(audit_events.c.metadata).where(audit_events.c.event_type == ACCEPTED, about)
    accepted = {str(from_json(text)["attestation"]) for text in tx.connection.execute(events).scalars()}
    return min(accepted.difference(present), default=None)
