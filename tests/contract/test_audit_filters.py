"""Filters and pages of the list of audit events, on both databases."""

from __future__ import annotations

import pytest
from operation_context import operation_context

from kneo.api.audit import list_audit_events
from kneo.clock import isoformat
from kneo.errors import InvalidValue
from kneo.store import audit
from kneo.store.engine import Store


def record(store: Store, actor: str, environment: str) -> str:
    with store.write() as tx:
        audit.record(tx, "release.promoted", actor=actor, environment=environment)
        return isoformat(tx.now)


def test_events_are_filtered_by_actor_and_environment(store: Store) -> None:
    for actor, environment in [("ann", "prod"), ("bob", "prod"), ("ann", "dev")]:
        record(store, actor, environment)
    context = operation_context(store)
    assert list_audit_events(context, actor="ann").total == 2
    assert list_audit_events(context, environment="prod").total == 2
    [event] = list_audit_events(context, actor="ann", environment="prod").events
    assert (event.actor, event.environment) == ("ann", "prod")
    assert list_audit_events(context, actor="ann'--").total == 0


def test_events_are_filtered_by_time_with_the_end_excluded(store: Store) -> None:
    first = record(store, "ann", "prod")
    context = operation_context(store)
    assert list_audit_events(context, created_after=first).total == 1
    assert list_audit_events(context, created_before=first).total == 0
    assert list_audit_events(context, created_after="2100-01-01T00:00:00Z").total == 0
    assert list_audit_events(context, created_before="2100-01-01T00:00:00Z").total == 1
    with pytest.raises(InvalidValue, match="yesterday"):
        list_audit_events(context, created_after="yesterday")


def test_pages_continue_after_the_last_event_while_others_are_recorded(store: Store) -> None:
    for _ in range(5):
        record(store, "ann", "prod")
    context = operation_context(store)
    first = list_audit_events(context, limit=3)
    assert (first.count, first.total) == (3, 5)
    record(store, "ann", "prod")
    second = list_audit_events(context, limit=3, after=first.next_after)
    assert (second.count, second.next_after) == (2, None)
    assert not {event.id for event in first.events} & {event.id for event in second.events}
