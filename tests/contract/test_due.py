"""The one statement that finds what the timers have to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from builders import build_run

from kneo.clock import ManualClock, isoformat
from kneo.records.run import RunStatus
from kneo.runtime.engine.timers import DUTIES, tick
from kneo.store import audit, runs
from kneo.store.due import Due, find_due
from kneo.store.engine import Store

pytestmark = pytest.mark.both_databases


def test_nothing_is_due_in_a_new_database_and_each_kind_has_a_duty(store: Store) -> None:
    assert find_due(store) == []
    assert set(DUTIES) == set(Due)


def test_events_are_due_until_they_are_sealed(store: Store) -> None:
    store.transact(lambda tx: audit.record(tx, "run.created", actor="ann"))
    assert find_due(store) == [Due.AUDIT]
    tick(store)
    assert find_due(store) == []


def test_a_run_is_due_at_its_deadline(store: Store, clock: ManualClock) -> None:
    deadline = isoformat(clock.now() + timedelta(minutes=1))
    run = replace(build_run(status=RunStatus.RUNNING), deadline_at=deadline)
    store.transact(lambda tx: runs.insert_run(tx, run))
    assert find_due(store) == []
    clock.advance(timedelta(minutes=2))
    assert find_due(store) == [Due.RUNS]
    tick(store)
    assert find_due(store) == []
