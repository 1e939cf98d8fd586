"""Writing what waits together, so that the price of reaching the disk is paid once for all of it.

Whoever waits for its own work writes: the first one that comes writes what is there, those who come meanwhile line up,
and the first of them writes for all. So one thread alone never waits for another one. Only the main thread, and work that
nobody waits for in a thread, have one that writes for them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
X = TypeVar("X")

MAX_GROUP = 64
"""Pieces of work in one transaction; each waits for all of them."""


@dataclass(frozen=True)
class _Work(Generic[X, T]):
    do: Callable[[X], T]
    durable: bool
    done: Future[T]
    lead: Callable[[], object]
    """Tells whoever brought it that it is first in line now, and writes what waits."""


class Writer(Generic[X]):
    """Runs pieces of work in groups, each group in one transaction, in the order in which they came.

    A piece that fails undoes what it did and nothing else. Nobody is told of success before the group is on disk.

    Args:
        begin: Opens the transaction of a group; it is told whether that has to be on disk when it ends.
        part: Opens a part of it that can be undone alone.
    """

    def __init__(
        self, begin: Callable[[bool], AbstractContextManager[X]], part: Callable[[X], AbstractContextManager[X]]
    ) -> None:
        self._begin = begin
        self._part = part
        self._lock = threading.Lock()
        self._queue: deque[_Work[X, object]] = deque()
        self._led = False
        """Whether somebody writes, or was told to."""
        self._closed = False
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None
        self._wanted = threading.Semaphore(0)

    def do(self, work: Callable[[X], T], *, durable: bool = True) -> T:
        """Do a piece of work and return when it is on disk, or raise when it is undone.

        What need not be durable is on disk no later than whatever durable comes after it.
        """
        if threading.current_thread() is threading.main_thread():
            # Somebody may interrupt it anywhere, and nobody would write any more if it was first in line then.
            return self.submit(work, durable=durable).result()
        turn = threading.Lock()
        turn.acquire()
        done: Future[T] = Future()
        done.add_done_callback(lambda _: turn.release())
        if not self._line_up(_Work(work, durable, done, turn.release)):
            turn.acquire()
        if not done.done():
            self._lead()
        return done.result()

    def submit(self, work: Callable[[X], T], *, durable: bool = True) -> Future[T]:
        """Queue a piece of work; its result or exception comes when ``do`` would return or raise."""
        done: Future[T] = Future()
        if self._line_up(_Work(work, durable, done, self._wanted.release)):
            self._wanted.release()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
                self._thread.start()
        return done

    def close(self) -> None:
        """Finish what is queued and end."""
        with self._lock:
            self._closed = True
            if not self._led:
                self._finished.set()
        self._finished.wait()
        self._wanted.release()
        if self._thread is not None:
            self._thread.join()

    def _line_up(self, work: _Work[X, T]) -> bool:
        """Queue a piece of work; say whether whoever brought it is to write."""
        with self._lock:
            if self._closed:
                msg = "the store is closed"
                raise RuntimeError(msg)
            self._queue.append(work)  # type: ignore[arg-type]  # each future gets its own work's result
            leads, self._led = not self._led, True
        return leads

    def _run(self) -> None:
        while self._wanted.acquire() and not self._finished.is_set():
            self._lead()

    def _lead(self) -> None:
        """Write what waits, and leave what came meanwhile to whoever is first then."""
        with self._lock:
            group = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GROUP))]
        outcomes = self._write(group)
        with self._lock:
            heir = self._queue[0] if self._queue else None
            self._led = heir is not None
            if self._closed and heir is None:
                self._finished.set()
        if heir is not None:
            heir.lead()
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
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            return [(None, error)] * len(group)

    def _try(self, work: _Work[X, object], whole: X) -> tuple[object, BaseException | None]:
        try:
            with self._part(whole) as part:
                return work.do(part), None
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            return None, error
