"""Decisions that keep a release from changing: holds, suspensions and rejections.

Their rows can be removed by each person who can write to the database, and nothing would be missing. So the audit log counts too: what an
authenticated event has set, and no later one has lifted, holds without its row.
"""

from __future__ import annotations

from collections.abc import Mapping

from kneo.records.audit import AuditEvent
from kneo.records.release import Hold, Suspension
from kneo.store import audit, releases
from kneo.store.engine import Tx

HOLD_SET, HOLD_CLEARED = "hold.set", "hold.cleared"
SUSPENDED, UNSUSPENDED = "environment.suspended", "environment.unsuspended"
REJECTED = "release.rejected"


def holds_in_force(tx: Tx, environment: str) -> Mapping[str, Hold]:
    """Return the holds of an environment by bundle, also those whose row is missing."""
    latest = {_bundle(event): event for event in audit.authentic_events(tx, environment, (HOLD_SET, HOLD_CLEARED))}
    found = {
        bundle: _hold(event)
        for bundle, event in latest.items()
        if event.event_type == HOLD_SET and _lasts(tx, event.metadata.get("until"))
    }
    return {**found, **{hold.bundle: hold for hold in releases.list_holds(tx, environment)}}


def suspension_in_force(tx: Tx, environment: str) -> Suspension | None:
    """Return the suspension of an environment, also where its row is missing."""
    stored = releases.suspension(tx, environment)
    if stored is not None:
        return stored
    events = audit.authentic_events(tx, environment, (SUSPENDED, UNSUSPENDED))
    if not events or events[-1].event_type != SUSPENDED or not _lasts(tx, events[-1].metadata.get("until")):
        return None
    event = events[-1]
    until = event.metadata.get("until")
    return Suspension(
        environment=environment,
        actor=event.actor or "",
        reason=str(event.metadata.get("reason")),
        since=event.at,
        until=str(until) if until is not None else None,
    )


def find_lost_rejection(tx: Tx, environment: str) -> str | None:
    """Return a rejection that the audit log has and the registry does not, as a problem; ``None`` without one."""
    stored = {record.id for record in releases.list_approvals(tx, environment)}
    for event in audit.authentic_events(tx, environment, (REJECTED,)):
        if event.metadata.get("approval") not in stored:
            return (
                f"{event.actor} rejected {event.metadata.get('bundle')} at {event.at}, and the registry does not have that "
                "decision any more. Restore it from a backup; until then nothing of this environment changes."
            )
    return None


def _hold(event: AuditEvent) -> Hold:
    facts = event.metadata
    digest, until = facts.get("digest"), facts.get("until")
    return Hold(
        environment=event.environment or "",
        bundle=_bundle(event),
        digest=str(digest) if digest is not None else None,
        actor=event.actor or "",
        reason=str(facts.get("reason")),
        since=event.at,
        until=str(until) if until is not None else None,
    )


def _bundle(event: AuditEvent) -> str:
    return str(event.metadata.get("bundle"))


def _lasts(tx: Tx, until: object) -> bool:
    return until is None or str(until) > tx.at
