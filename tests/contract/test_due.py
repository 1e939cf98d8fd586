"""The one statement that finds what the timers have to do."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from builders import build_run

from kneo.clock import ManualClock, isoformat
from kneo.records.run import RunStatus
from kneo.runtime.engine.timers import DUTIES, run_timers, tick
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


class Pauses(threading.Event):
    """Ends the timers after some pauses, which take no time."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store, self.seconds = store, list[float]()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.seconds.append(round(timeout))
        if len(self.seconds) == 1:
            self.store.transact(lambda tx: audit.record(tx, "run.created", actor="ann"))
        if len(self.seconds) == 3:
            self.set()
        return True


def test_the_timers_pause_longer_after_a_search_in_vain(store: Store) -> None:
    pauses = Pauses(store)
    run_timers(store, pauses)
    assert pauses.seconds[:3] == [2, 1, 2]
