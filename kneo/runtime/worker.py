"""Finding runs that nobody drives and driving them, a bounded number at a time.

Dispatch inside one process: the commit that makes a run due tells the worker; what other processes made due is found by
looking every half second.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from typing import ClassVar

from kneo.clock import monotonic
from kneo.errors import Transient
from kneo.runtime.advance import Driver
from kneo.runtime.code import Elsewhere
from kneo.store import runs
from kneo.store.engine import Store
from kneo.store.queue import DUE

log = logging.getLogger("kneo.runtime")

POLL_SECONDS = 0.5

DRAIN_SECONDS = 30.0
"""How long steps that are under way may take to end when their process is to stop; then they are cut short."""


class Worker:
    """The one process that executes steps on a database. ``run`` blocks; ``stop`` works from any thread."""

    DEFAULT_CONCURRENCY: ClassVar[int] = 4

    def __init__(self, store: Store, driver: Driver, *, concurrency: int = DEFAULT_CONCURRENCY) -> None:
        self.store = store
        self.driver = driver
        self.concurrency = concurrency
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._stopping = threading.Event()
        self._elsewhere: set[str] = set()
        self._heard: deque[str] = deque()
        """Runs that were told to be due, as they were told: any thread may."""
        self._told: dict[str, None] = {}
        """Those of them that were not begun yet, in order."""
        self._looked = -POLL_SECONDS
        """When the database was last asked for runs that nobody told of here; long ago where it had more than that."""

    def run(self) -> None:
        """Work until ``stop``. Steps that are under way are finished first."""
        with self.store.notices.calling(DUE, self._hear):
            asyncio.run(self._work())

    def stop(self) -> None:
        self._stopping.set()
        self.driver.drain()
        self._wake()

    def _hear(self, run_id: object) -> None:
        self._heard.append(str(run_id))
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._clear_owners)
        busy: dict[str, asyncio.Task[None]] = {}
        while not self._stopping.is_set():
            self._news.clear()
            for run_id in self._due(self.concurrency - len(busy), set(busy)):
                busy[run_id] = asyncio.create_task(self.driver.drive(run_id))
            await self._wait(busy)
            for run_id in [run_id for run_id, task in busy.items() if task.done()]:
                self._report(run_id, busy.pop(run_id))
        if busy:
            _, late = await asyncio.wait(busy.values(), timeout=DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.driver.close()

    async def _wait(self, busy: dict[str, asyncio.Task[None]]) -> None:
        news = asyncio.create_task(self._news.wait())
        await asyncio.wait([news, *busy.values()], timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()

    def _due(self, room: int, busy: set[str]) -> list[str]:
        """Choose what to begin: what was told to be due, then what is found where there may be more.

        A run that is due while it is driven is kept: its driver may have let go of it already.
        """
        while self._heard:
            self._told[self._heard.popleft()] = None
        for run_id in self._elsewhere:
            self._told.pop(run_id, None)
        ready = [run_id for run_id in self._told if run_id not in busy][: max(room, 0)]
        if len(ready) < room and monotonic() - self._looked >= POLL_SECONDS:
            ready += self._find(room + len(busy), {*busy, *ready})[: room - len(ready)]
        for run_id in ready:
            self._told.pop(run_id, None)
        return ready

    def _find(self, limit: int, known: set[str]) -> list[str]:
        try:
            # On SQLite, the only place of this worker, nobody keeps a reader waiting: shorter than a hop to a thread.
            found = self._runnable(limit + len(self._elsewhere))
        except Transient as error:
            log.warning("could not look for runs: %s", error)
            return []
        self._looked = monotonic() - (POLL_SECONDS if len(found) >= limit else 0)
        return [run_id for run_id in found if run_id not in known and run_id not in self._elsewhere]

    def _runnable(self, limit: int) -> tuple[str, ...]:
        with self.store.read() as tx:
            return runs.runnable(tx, limit)

    def _clear_owners(self) -> None:
        with self.store.write() as tx:
            freed = runs.clear_owners(tx)
        if freed:
            log.info("took over runs of a process that ended", extra={"count": freed})

    def _report(self, run_id: str, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, Elsewhere):
            # It will not come to have that code; looking again every half second would only be noise.
            self._elsewhere.add(run_id)
            log.warning("left a run to the program that has its code", extra={"run_id": run_id})
        else:
            log.error("driving a run failed; it will be tried again", extra={"run_id": run_id}, exc_info=error)
