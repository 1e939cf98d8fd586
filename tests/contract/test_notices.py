"""News among the threads of one process."""

from __future__ import annotations

import threading

from kneo.store.notices import Notices


def test_all_who_listen_are_told_and_nobody_else() -> None:
    notices = Notices()
    with notices.listening("a") as one, notices.listening("a") as two, notices.listening("b") as other:
        notices.tell("a")
        assert (one.is_set(), two.is_set(), other.is_set()) == (True, True, False)
    notices.tell("a")
    with notices.listening("a") as late:
        assert not late.is_set()


def test_whoever_waits_is_woken() -> None:
    notices, heard = Notices(), threading.Event()
    with notices.listening("a") as news:
        threading.Thread(target=lambda: news.wait(30) and heard.set()).start()
        notices.tell("a")
        assert heard.wait(30)
