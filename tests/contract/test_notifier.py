"""Notifications of commits among the threads of one process."""

from __future__ import annotations

import concurrent.futures
import threading

from builders import build_run

from kneo.errors import Conflict
from kneo.store import runs
from kneo.store.engine import Store, Tx
from kneo.store.writer import ANY_COMMIT, REMEMBERED, CommitNotifier


def test_every_listener_of_a_topic_is_notified_and_no_other_one() -> None:
    notifier, heard = CommitNotifier(), list[tuple[str, object]]()
    with (
        notifier.listen("a", lambda change: heard.append(("one", change))),
        notifier.listen("a", lambda change: heard.append(("two", change))),
        notifier.listen("b", lambda change: heard.append(("other", change))),
    ):
        notifier.notify([("a", 1)])
    assert heard == [("one", 1), ("two", 1)]
    notifier.notify([("a", 2)])
    with notifier.listen("a", lambda change: heard.append(("late", change))):
        assert len(heard) == 2


def test_every_commit_of_this_process_notifies_listeners_of_any_commit(store: Store) -> None:
    commits = threading.Event()
    with store.notifier.listen(ANY_COMMIT, lambda _: commits.set()):
        with store.read():
            pass
        assert not commits.is_set()
        with store.write():
            assert not commits.is_set()
        assert commits.is_set()
        commits.clear()
        mark = store.notifier.mark()
        store.transact(lambda tx: tx.notify("a", 1))
        assert commits.is_set()
        assert store.notifier.since("a", mark) == [1]


def test_a_listener_in_another_thread_is_notified() -> None:
    notifier, notified = CommitNotifier(), threading.Event()
    with notifier.listen("a", lambda _: notified.set()):
        threading.Thread(target=lambda: notifier.notify([("a", None)])).start()
        assert notified.wait(240)


def test_a_late_listener_reads_recent_notifications() -> None:
    notifier = CommitNotifier()
    notifier.notify([("a", 1)])
    mark = notifier.mark()
    notifier.notify([("b", 2)])
    notifier.notify([("a", 3)])
    assert (notifier.since("a", mark), notifier.since("c", mark)) == ([3], [])
    for _ in range(REMEMBERED):
        notifier.notify([("b", None)])
    assert notifier.since("a", mark) is None, "a forgotten notification is not reported as none"


def test_a_transaction_notifies_once_it_is_on_disk_and_not_when_it_is_rolled_back(store: Store) -> None:
    run, heard = build_run(), []

    def commits(tx: Tx) -> None:
        runs.insert_run(tx, run)
        tx.notify(run.id, "committed")

    def fails(tx: Tx) -> None:
        tx.notify(run.id, "rolled back")
        raise Conflict("no")

    def hear(change: object) -> None:
        with store.read() as tx:
            heard.append((change, runs.get(tx, run.id) is not None))

    with store.notifier.listen(run.id, hear):
        futures = [store.submit(fails), store.submit(commits), store.submit(fails)]
        concurrent.futures.wait(futures)
    assert heard == [("committed", True)]
