"""Between threads and the event loop: blocking work has a thread each, so that slow functions never queue behind each other;
what is async and was begun by a thread runs on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import copy_context
from typing import Generic, TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Do something in a thread of its own, in the context of whoever waits for it.

    The thread is a daemon: work that nobody waits for any more (a cancelled function that does not look at its token)
    must not keep a process from ending.
    """
    loop = asyncio.get_running_loop()
    around = copy_context()
    future: asyncio.Future[T] = loop.create_future()

    def put(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # T where there is no error

    def run() -> None:
        result, error = None, None
        try:
            result = around.run(work)
        except BaseException as caught:  # noqa: BLE001 - handed to whoever waits
            error = caught if not isinstance(caught, StopIteration) else RuntimeError(str(caught))
        # The loop may have closed meanwhile; then nobody waits.
        if not loop.is_closed():
            loop.call_soon_threadsafe(put, result, error)

    submit(run)
    return await future


IDLE_SECONDS = 5.0
"""How long a thread waits for more work: starting one costs more than most functions do."""


class _Thread(threading.Thread):
    """Does one piece of work after the other, and ends when nobody has had any for a while."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name="step", daemon=True)
        self.work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.work.put(work)

    def run(self) -> None:
        while True:
            try:
                work = self.work.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with _lock:
                    if self in _idle:
                        _idle.remove(self)
                        return
                # Somebody has taken it just now and is about to hand it work.
                continue
            work()
            del work
            with _lock:
                _idle.append(self)


_lock = threading.Lock()
_idle: list[_Thread] = []
"""Threads with nothing to do. The last one is taken first, so that those that are not needed end."""


def submit(work: Callable[[], None]) -> None:
    """Do something that does not raise in a thread of its own; nobody waits for it."""
    with _lock:
        thread = _idle.pop() if _idle else None
    if thread is None:
        _Thread(work).start()
    else:
        thread.work.put(work)


class BoundedThreads:
    """Does work in threads, a bounded number at a time, first come first served.

    Args:
        limit: Pieces of work that are done at the same time. Those inside ``blocking`` do not count.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._running = 0
        self._blocked = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Do something that does not raise, once a thread is free.

        Raises:
            RuntimeError: there is no thread, and none of these threads runs that could do it later.
        """
        with self._lock:
            self._waiting.append(work)
        try:
            self._start()
        except RuntimeError:
            with self._lock:
                if self._running or work not in self._waiting:
                    return
                self._waiting.remove(work)
            raise

    @contextlib.contextmanager
    def blocking(self) -> Iterator[None]:
        """Let another piece of work begin while this thread is in code that may block."""
        with self._lock:
            self._blocked += 1
        try:
            with contextlib.suppress(RuntimeError):  # no thread now; what waits is done when one is free
                self._start()
            yield
        finally:
            with self._lock:
                self._blocked -= 1

    def _start(self) -> None:
        with self._lock:
            if not self._waiting or self._running - self._blocked >= self._limit:
                return
            self._running += 1
        try:
            submit(self._run)
        except RuntimeError:
            with self._lock:
                self._running -= 1
            raise

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self._running - self._blocked > self._limit:
                    self._running -= 1
                    return
                work = self._waiting.popleft()
            work()
            del work


class LoopTask(Generic[T]):
    """A coroutine that a thread has begun on the event loop of another one.

    Args:
        loop: Where.
        work: What.
        ended: Called by that loop when it is over, however it ended; also when it was cancelled before it began.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[object, object, T],
        ended: Callable[[LoopTask[T]], object],
    ) -> None:
        self._loop = loop
        self._task: asyncio.Task[T] | None = None

        def begin() -> None:
            self._task = loop.create_task(work)
            self._task.add_done_callback(lambda _: ended(self))

        loop.call_soon_threadsafe(begin)

    def cancel(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing runs there any more
            self._loop.call_soon_threadsafe(lambda: self._task is not None and self._task.cancel())

    @property
    def was_stopped(self) -> bool:
        """Whether it was cancelled instead of coming to an end."""
        return self._task is not None and self._task.cancelled()

    def result(self) -> T:
        """Return what came of it once it is over, or raise what it raised."""
        assert self._task is not None
        return self._task.result()
