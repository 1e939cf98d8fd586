"""Functions have a thread each, and threads are used again."""

from __future__ import annotations

import asyncio
import threading

import pytest
from kneo_process import eventually

from kneo.runtime.steps import threads
from kneo.runtime.steps.threads import BoundedThreads, in_thread


def test_what_runs_at_the_same_time_never_queues() -> None:
    meeting = threading.Barrier(20)

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(in_thread(lambda: meeting.wait(240)) for _ in range(20)))

    assert sorted(asyncio.run(all_at_once())) == list(range(20))


def test_a_thread_is_used_again_after_an_error_too() -> None:
    async def again() -> bool:
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)
        first = await in_thread(threading.get_ident)
        await asyncio.to_thread(eventually, lambda: any(thread.ident == first for thread in threads._idle))
        # Which of those that wait is taken does not matter: none has to be started.
        known = {thread.ident for thread in threading.enumerate()}
        return await in_thread(threading.get_ident) in known

    assert asyncio.run(again())


def test_idle_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.01)
    thread = threads._Thread(lambda: None)
    thread.start()
    thread.join(240)
    assert not thread.is_alive()
    assert thread not in threads._idle


def test_bounded_threads_do_everything_and_never_more_than_allowed_at_once() -> None:
    bounded = BoundedThreads(3)
    lock, active, most, done = threading.Lock(), [0], [0], threading.Semaphore(0)

    def work() -> None:
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        with lock:
            active[0] -= 1
        done.release()

    for _ in range(200):
        bounded.submit(work)
    assert all(done.acquire(timeout=240) for _ in range(200))
    assert 1 <= most[0] <= 3


def test_work_that_blocks_lets_other_work_begin() -> None:
    bounded = BoundedThreads(1)
    meeting = threading.Barrier(5)
    done = threading.Semaphore(0)

    def work() -> None:
        with bounded.blocking():
            meeting.wait(240)
        done.release()

    for _ in range(4):
        bounded.submit(work)
    meeting.wait(240)
    assert all(done.acquire(timeout=240) for _ in range(4))


def test_work_is_refused_where_no_thread_can_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = BoundedThreads(2)
    done = threading.Event()

    def no_thread(_work: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threads, "submit", no_thread)
        with pytest.raises(RuntimeError):
            bounded.submit(lambda: pytest.fail("refused work was done"))
    bounded.submit(done.set)
    assert done.wait(240)
