"""News among the threads of one process."""

from __future__ import annotations

import concurrent.futures
import threading

from builders import build_run

from kneo.errors import Conflict
from kneo.store import runs
from kneo.store.engine import Store, Tx
from kneo.store.notifier import ANYTHING, REMEMBERED, CommitNotifier


def test_all_who_listen_are_told_and_nobody_else() -> None:
    notices = CommitNotifier()
    with notices.listening("a") as one, notices.listening("a") as two, notices.listening("b") as other:
        notices.tell([("a", None)])
        assert (one.is_set(), two.is_set(), other.is_set()) == (True, True, False)
    notices.tell([("a", None)])
    with notices.listening("a") as late:
        assert not late.is_set()


def test_every_commit_of_this_process_is_told_to_who_listens_to_anything(store: Store) -> None:
    with store.notices.listening(ANYTHING) as news:
        with store.read():
            pass
        assert not news.is_set()
        with store.write():
            assert not news.is_set()
        assert news.is_set()
        news.clear()
        mark = store.notices.mark()
        store.transact(lambda tx: tx.tell("a", 1))
        assert news.is_set()
        assert store.notices.since("a", mark) == [1]


def test_whoever_waits_is_woken() -> None:
    notices, heard = CommitNotifier(), threading.Event()
    with notices.listening("a") as news:
        threading.Thread(target=lambda: news.wait(30) and heard.set()).start()
        notices.tell([("a", None)])
        assert heard.wait(30)


def test_what_was_told_just_before_is_still_to_be_had() -> None:
    notices = CommitNotifier()
    notices.tell([("a", 1)])
    mark = notices.mark()
    notices.tell([("b", 2)])
    notices.tell([("a", 3)])
    assert (notices.since("a", mark), notices.since("c", mark)) == ([3], [])
    for _ in range(REMEMBERED):
        notices.tell([("b", None)])
    assert notices.since("a", mark) is None, "nobody may believe that there was nothing"


def test_what_is_told_in_a_transaction_is_told_once_it_is_on_disk_and_not_when_it_is_undone(store: Store) -> None:
    run, heard = build_run(), []

    def tells(tx: Tx) -> None:
        runs.insert_run(tx, run)
        tx.tell(run.id, "news")

    def fails(tx: Tx) -> None:
        tx.tell(run.id, "lie")
        raise Conflict("no")

    def hear(news: object) -> None:
        with store.read() as tx:
            heard.append((news, runs.get(tx, run.id) is not None))

    with store.notices.calling(run.id, hear):
        futures = [store.submit(fails), store.submit(tells), store.submit(fails)]
        concurrent.futures.wait(futures)
    assert heard == [("news", True)]
