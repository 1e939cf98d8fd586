"""Writes that wait together reach the disk together; each stands or falls alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from builders import build_run
from kneo_process import eventually
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from kneo.errors import Conflict
from kneo.store import runs
from kneo.store.engine import Store, Tx


def waited_for(store: Store, work: Callable[[Tx], None]) -> Future[None]:
    """Do it in this thread, as a future."""
    done: Future[None] = Future()
    try:
        done.set_result(store.transact(work))
    except Exception as error:  # noqa: BLE001 - a future takes any
        done.set_exception(error)
    return done


@pytest.mark.parametrize(
    "ways", [(Store.submit,), (waited_for,), (Store.submit, waited_for)], ids=["submitted", "waited for", "both"]
)
def test_one_that_fails_takes_nobody_with_it(
    store: Store, ways: Sequence[Callable[[Store, Callable[[Tx], None]], Future[None]]]
) -> None:
    made = [build_run() for _ in range(50)]

    def insert(number: int) -> Future[None]:
        def work(tx: Tx) -> None:
            runs.insert_run(tx, made[number])
            if number % 5 == 0:
                raise Conflict("no")
            if number % 7 == 0:
                runs.insert_run(tx, made[number])

        return ways[number % len(ways)](store, work)

    with ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(insert, range(50)))
    failures = {number: future.exception(10) for number, future in enumerate(futures)}
    with store.read() as tx:
        kept = [number for number, run in enumerate(made) if runs.get(tx, run.id) is not None]
    assert kept == [number for number in range(50) if number % 5 and number % 7]
    for number, failure in failures.items():
        expected = Conflict if number % 5 == 0 else IntegrityError if number % 7 == 0 else type(None)
        assert isinstance(failure, expected)


def test_what_waits_while_somebody_writes_is_written_together_by_whoever_came_first_then(store: Store) -> None:
    if not store.is_sqlite:
        pytest.skip("a server has its own way of doing that")
    writing, go_on = threading.Event(), threading.Event()
    wrote: list[tuple[int, int]] = []

    def slow(_tx: Tx) -> None:
        writing.set()
        assert go_on.wait(240)

    def work(tx: Tx) -> None:
        wrote.append((threading.get_ident(), id(tx.connection.connection.dbapi_connection)))

    commits: list[object] = []
    hear = commits.append
    event.listen(store.engine, "commit", hear)
    threads = [threading.Thread(target=store.transact, args=(task,)) for task in (slow, *[work] * 5)]
    threads[0].start()
    assert writing.wait(240)
    for thread in threads[1:]:
        thread.start()
    assert eventually(lambda: len(store._writer._queue) == 5)
    go_on.set()
    for thread in threads:
        thread.join(240)
    event.remove(store.engine, "commit", hear)
    assert len(wrote) == 5
    assert len({who for who, _ in wrote}) == 1
    assert wrote[0][0] in {thread.ident for thread in threads}
    assert len(commits) == 2


def test_a_closed_store_takes_nothing_more(store: Store) -> None:
    if not store.is_sqlite:
        pytest.skip("a server's connections are opened again")
    store.transact(lambda _tx: None)
    store.close()
    for way in (Store.submit, Store.transact):
        with pytest.raises(RuntimeError):
            way(store, lambda _tx: None)


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
