"""Threads and the event loop. Blocking work has a thread each: slow functions never queue behind each other."""

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
    """Do work in a thread of its own, in the caller's context, and return its result.

    The thread is a daemon: a cancelled function that ignores its token must not keep a process from ending.
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
        except BaseException as caught:  # noqa: BLE001 - raised in the caller
            error = caught if not isinstance(caught, StopIteration) else RuntimeError(str(caught))
        # The loop may have closed meanwhile.
        if not loop.is_closed():
            loop.call_soon_threadsafe(put, result, error)

    submit(run)
    return await future


IDLE_SECONDS = 5.0
"""The time that a thread waits for more work: a new thread costs more than most functions."""


class _Thread(threading.Thread):
    """A thread that does one piece of work after the other, and ends after a while without work."""

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
                # Another thread took it just now and is about to hand it work.
                continue
            work()
            del work
            with _lock:
                _idle.append(self)


_lock = threading.Lock()
_idle: list[_Thread] = []
"""Idle threads. The last one is taken first, so that unneeded ones end."""


def submit(work: Callable[[], None]) -> None:
    """Start work that does not raise in a thread of its own."""
    with _lock:
        thread = _idle.pop() if _idle else None
    if thread is None:
        _Thread(work).start()
    else:
        thread.work.put(work)


class BoundedThreads:
    """Threads that do a bounded number of pieces of work at a time, in their order.

    Args:
        limit: Pieces of work at the same time, without those inside ``blocking``.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._running = 0
        self._blocked = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Do work that does not raise, once a thread is free.

        Raises:
            RuntimeError: no thread can be started, and none of these threads runs.
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
            with contextlib.suppress(RuntimeError):  # no thread now; queued work begins when one is free
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
    """A coroutine that a thread begins on the event loop of another thread.

    Args:
        loop: The event loop.
        work: The coroutine.
        ended: Called by the loop when the task is over; also when it was cancelled before it began.
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

    def cancel(self, reason: str | None = None) -> None:
        """Cancel the coroutine, with the argument of its ``asyncio.CancelledError``."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(lambda: self._task is not None and self._task.cancel(reason))

    @property
    def was_stopped(self) -> bool:
        """Whether the task was cancelled."""
        return self._task is not None and self._task.cancelled()

    def result(self) -> T:
        """Return the result of the finished task, or raise its exception."""
        assert self._task is not None
        return self._task.result()
