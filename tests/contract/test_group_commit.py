"""Writes that wait together reach the disk together; each stands or falls alone."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from builders import build_run
from sqlalchemy.exc import IntegrityError

from kneo.errors import Conflict
from kneo.store import runs
from kneo.store.engine import Store, Tx


def test_one_that_fails_takes_nobody_with_it(store: Store) -> None:
    made = [build_run() for _ in range(50)]

    def insert(number: int) -> Future[None]:
        def work(tx: Tx) -> None:
            runs.insert_run(tx, made[number])
            if number % 5 == 0:
                raise Conflict("no")
            if number % 7 == 0:
                runs.insert_run(tx, made[number])

        return store.submit(work)

    with ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(insert, range(50)))
    failures = {number: future.exception(10) for number, future in enumerate(futures)}
    with store.read() as tx:
        kept = [number for number, run in enumerate(made) if runs.get(tx, run.id) is not None]
    assert kept == [number for number in range(50) if number % 5 and number % 7]
    for number, failure in failures.items():
        expected = Conflict if number % 5 == 0 else IntegrityError if number % 7 == 0 else type(None)
        assert isinstance(failure, expected)


def test_what_was_acknowledged_is_there(store: Store) -> None:
    run = build_run()
    store.transact(lambda tx: runs.insert_run(tx, run))
    with store.read() as tx:
        assert runs.get(tx, run.id) is not None


def test_a_failure_reaches_whoever_waits(store: Store) -> None:
    def work(_tx: Tx) -> None:
        raise Conflict("no")

    with pytest.raises(Conflict):
        store.transact(work)


def test_closing_finishes_what_is_queued(store: Store) -> None:
    made = [build_run() for _ in range(20)]
    futures = [store.submit(lambda tx, run=run: runs.insert_run(tx, run)) for run in made]
    store.close()
    assert all(future.exception(1) is None for future in futures)
