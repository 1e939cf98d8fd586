"""Decisions that keep a release from changing: holds, suspensions and rejections.

Each person who can write to the database can remove their rows, and nothing would be missing. So the audit log counts too: what an event
has set, and no later one has lifted, holds without its row. An event that is not authentic can set, and lifts only what none that is
authentic has set: with its code removed, or as a forgery, it stops a change and permits none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from kneo.records.audit import AuditEvent
from kneo.records.release import Hold, Suspension
from kneo.store import audit, releases
from kneo.store.engine import Tx

HOLD_SET, HOLD_CLEARED = "hold.set", "hold.cleared"
SUSPENDED, UNSUSPENDED = "environment.suspended", "environment.unsuspended"
CONTROLS = (HOLD_SET, HOLD_CLEARED, SUSPENDED, UNSUSPENDED)
REJECTED = "release.rejected"
DECLARED, CHANGED = "environment.declared", "environment.changed"


def holds_in_force(tx: Tx, environment: str) -> Mapping[str, Hold]:
    """Return the holds of an environment by bundle, also those whose row is missing."""
    found = {bundle: _hold(event) for bundle, event in _latest_set(tx, environment, HOLD_SET, HOLD_CLEARED).items()}
    return {**found, **{hold.bundle: hold for hold in releases.list_holds(tx, environment)}}


def suspension_in_force(tx: Tx, environment: str) -> Suspension | None:
    """Return the suspension of an environment, also where its row is missing."""
    stored = releases.suspension(tx, environment)
    if stored is not None:
        return stored
    for event in _latest_set(tx, environment, SUSPENDED, UNSUSPENDED).values():
        return Suspension(environment=environment, **_facts(event))
    return None


def find_lost_rejection(tx: Tx, environment: str) -> str | None:
    """Return a rejection that the audit log has and the registry does not, as a problem; ``None`` without one."""
    stored = {record.id for record in releases.list_approvals(tx, environment)}
    for event, _ in audit.recorded_events(tx, environment, (REJECTED,)):
        if event.metadata.get("approval") not in stored:
            return (
                f"{event.actor} rejected {event.metadata.get('bundle')} at {event.at}, and the registry does not have that "
                "decision any more. Restore it from a backup; until then nothing of this environment changes."
            )
    return None


def list_accepted_rules(tx: Tx, environment: str) -> frozenset[str]:
    """Return the digests of all rules that were ever in force in an environment, by the audit log."""
    events = audit.recorded_events(tx, environment, (DECLARED, CHANGED))
    return frozenset(str(event.metadata.get("policy_digest")) for event, _ in events)


def list_decided(tx: Tx) -> Mapping[str, frozenset[tuple[object, ...]]]:
    """Return what people have decided about each environment: values that change with each decision, hold and suspension."""
    return releases.list_decided(tx, (*CONTROLS, REJECTED))


def _latest_set(tx: Tx, environment: str, sets: str, lifts: str) -> Mapping[str, AuditEvent]:
    """Return the events that have set what still holds, by bundle."""
    latest: dict[str, audit.RecordedEvent] = {}
    # One statement of a snapshot reads the events of holds and suspensions.
    controls = tx.once((CONTROLS, environment), lambda: audit.recorded_events(tx, environment, CONTROLS))
    for item in controls:
        if item.event.event_type not in (sets, lifts):
            continue
        known = latest.get(_bundle(item.event))
        if item.is_authentic or known is None or known.event.event_type == lifts or not known.is_authentic:
            latest[_bundle(item.event)] = item
    return {
        bundle: event
        for bundle, (event, _) in latest.items()
        if event.event_type == sets and _lasts(tx, event.metadata.get("until"))
    }


def _hold(event: AuditEvent) -> Hold:
    digest = event.metadata.get("digest")
    return Hold(
        environment=event.environment or "",
        bundle=_bundle(event),
        digest=str(digest) if digest is not None else None,
        **_facts(event),
    )


class _Facts(TypedDict):
    actor: str
    reason: str
    since: str
    until: str | None


def _facts(event: AuditEvent) -> _Facts:
    until = event.metadata.get("until")
    return {
        "actor": event.actor or "",
        "reason": str(event.metadata.get("reason")),
        "since": event.at,
        "until": str(until) if until is not None else None,
    }


def _bundle(event: AuditEvent) -> str:
    return str(event.metadata.get("bundle"))


def _lasts(tx: Tx, until: object) -> bool:
    return until is None or str(until) > tx.at
