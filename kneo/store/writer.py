"""One thread that writes, and writes what waits together: the price of reaching the disk is paid once for all of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
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
    done: Future[T]
    durable: bool


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
        self._queue: deque[_Work[X, object]] = deque()
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, work: Callable[[X], T], *, durable: bool = True) -> Future[T]:
        """Queue a piece of work; its result or exception comes when it is on disk or undone.

        What need not be durable is on disk no later than whatever durable comes after it.
        """
        done: Future[T] = Future()
        with self._news:
            if self._closed:
                msg = "the store is closed"
                raise RuntimeError(msg)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
                self._thread.start()
            self._queue.append(_Work(work, done, durable))  # type: ignore[arg-type]  # each future gets its own work's result
            self._news.notify()
        return done

    def close(self) -> None:
        """Finish what is queued and end."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            self._write(group)

    def _next(self) -> list[_Work[X, object]]:
        with self._news:
            while not self._queue and not self._closed:
                self._news.wait()
            return [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GROUP))]

    def _write(self, group: list[_Work[X, object]]) -> None:
        outcomes: list[tuple[object, BaseException | None]] = []
        try:
            with self._begin(any(work.durable for work in group)) as whole:
                if len(group) == 1:
                    outcomes.append((group[0].do(whole), None))
                else:
                    outcomes.extend(self._try(work, whole) for work in group)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            outcomes = [(None, error)] * len(group)
        for work, (result, failure) in zip(group, outcomes, strict=True):
            if failure is not None:
                work.done.set_exception(failure)
            else:
                work.done.set_result(result)

    def _try(self, work: _Work[X, object], whole: X) -> tuple[object, BaseException | None]:
        try:
            with self._part(whole) as part:
                return work.do(part), None
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            return None, error
