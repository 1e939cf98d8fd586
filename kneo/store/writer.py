"""Group commit, and notifications of commits among the threads of one process.

Pieces of work that are submitted together share one transaction, and one write to the disk. A thread that waits for its own
work writes the group: the first one to arrive writes the queue, later arrivals queue up, and the first of them writes the next
group. A single thread never waits for another one. Work of the main thread, and work whose thread does not wait, is written by a
thread of the writer.

A notification is a hint: the database has the truth, and other processes send none.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
X = TypeVar("X")

MAX_GROUP = 64
"""The most pieces of work in one transaction; each waits for all of them."""


@dataclass(frozen=True)
class _Work(Generic[X, T]):
    do: Callable[[X], T]
    durable: bool
    done: Future[T]
    lead: Callable[[], object]
    """Wakes the thread that submitted the work, to write the next group."""


class Writer(Generic[X]):
    """Runs pieces of work in groups, each group in one transaction, in the order in which they came.

    The changes of a piece that fails are rolled back alone. Results are returned once the group is on disk.

    Args:
        begin: Opens the transaction of a group, given whether it has to be on disk when it ends.
        part: Opens a savepoint within it.
    """

    def __init__(
        self, begin: Callable[[bool], AbstractContextManager[X]], part: Callable[[X], AbstractContextManager[X]]
    ) -> None:
        self._begin = begin
        self._part = part
        self._lock = threading.Lock()
        self._queue: deque[_Work[X, object]] = deque()
        self._led = False
        """Whether a thread writes or was woken to write."""
        self._closed = False
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None
        self._requests = threading.Semaphore(0)

    def do(self, work: Callable[[X], T], *, durable: bool = True) -> T:
        """Do a piece of work; return once it is on disk, or raise after its rollback.

        Work that need not be durable is on disk no later than the next durable work.
        """
        if threading.current_thread() is threading.main_thread():
            # A signal may interrupt the main thread anywhere; as the leader it would stop all writing.
            return self.submit(work, durable=durable).result()
        woken = threading.Lock()
        woken.acquire()
        done: Future[T] = Future()
        done.add_done_callback(lambda _: woken.release())
        if not self._enqueue(_Work(work, durable, done, woken.release)):
            woken.acquire()
        if not done.done():
            self._lead()
        return done.result()

    def submit(self, work: Callable[[X], T], *, durable: bool = True) -> Future[T]:
        """Queue a piece of work; the future resolves when ``do`` would return or raise."""
        done: Future[T] = Future()
        if self._enqueue(_Work(work, durable, done, self._requests.release)):
            self._requests.release()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
                self._thread.start()
        return done

    def close(self) -> None:
        """Write the queued work and stop."""
        with self._lock:
            self._closed = True
            if not self._led:
                self._finished.set()
        self._finished.wait()
        self._requests.release()
        if self._thread is not None:
            self._thread.join()

    def _enqueue(self, work: _Work[X, T]) -> bool:
        """Queue a piece of work; return whether its thread has to write."""
        with self._lock:
            if self._closed:
                msg = "the store is closed"
                raise RuntimeError(msg)
            self._queue.append(work)  # type: ignore[arg-type]  # each future gets its own work's result
            leads, self._led = not self._led, True
        return leads

    def _run(self) -> None:
        while self._requests.acquire() and not self._finished.is_set():
            self._lead()

    def _lead(self) -> None:
        """Write a group, and wake the thread of the first work after it to write the next."""
        with self._lock:
            group = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GROUP))]
        outcomes = self._write(group)
        with self._lock:
            successor = self._queue[0] if self._queue else None
            self._led = successor is not None
            if self._closed and successor is None:
                self._finished.set()
        if successor is not None:
            successor.lead()
        for work, (result, failure) in zip(group, outcomes, strict=True):
            if failure is not None:
                work.done.set_exception(failure)
            else:
                work.done.set_result(result)

    def _write(self, group: Sequence[_Work[X, object]]) -> Sequence[tuple[object, BaseException | None]]:
        try:
            with self._begin(any(work.durable for work in group)) as whole:
                if len(group) == 1:
                    return [(group[0].do(whole), None)]
                return [self._try(work, whole) for work in group]
        except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
            return [(None, error)] * len(group)

    def _try(self, work: _Work[X, object], whole: X) -> tuple[object, BaseException | None]:
        try:
            with self._part(whole) as part:
                return work.do(part), None
        except Exception as error:  # noqa: BLE001 - raised in the waiting thread
            return None, error


REMEMBERED = 64
"""Notifications that are kept for listeners that start late."""

ANY_COMMIT = ""
"""The topic of every commit of this process."""

Listener = Callable[[object], object]


class CommitNotifier:
    """Calls the listeners of a topic after a commit, with the change where the committer knows all of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Listener]] = {}
        self._recent: deque[tuple[str, object]] = deque(maxlen=REMEMBERED)
        self._count = 0

    @contextlib.contextmanager
    def listen(self, topic: str, listener: Listener) -> Iterator[None]:
        """Call a listener at every notification until the block ends, in the committing thread; it must be quick and not raise."""
        with self._lock:
            self._listeners.setdefault(topic, []).append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners[topic].remove(listener)
                if not self._listeners[topic]:
                    del self._listeners[topic]

    def notify(self, notifications: Sequence[tuple[str, object]] = ()) -> None:
        """Notify the listeners of any commit, and those of these topics.

        Args:
            notifications: Topics and the changes; ``None`` for a change that has to be read.
        """
        with self._lock:
            self._count += len(notifications)
            self._recent.extend(notifications)
            calls = [
                (listener, change)
                for topic, change in ((ANY_COMMIT, None), *notifications)
                for listener in self._listeners.get(topic, ())
            ]
        for listener, change in calls:
            listener(change)

    def mark(self) -> int:
        """Return the current position among the notifications, for ``since``."""
        return self._count

    def since(self, topic: str, mark: int) -> Sequence[object] | None:
        """Return the changes of a topic after a mark; ``None`` where some of them are no longer kept."""
        with self._lock:
            missed = self._count - mark
            if missed > len(self._recent):
                return None
            recent = list(self._recent)[len(self._recent) - missed :]
            return [change for name, change in recent if name == topic]
