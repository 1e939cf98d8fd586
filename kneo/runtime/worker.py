"""Finding runs that nobody drives and driving them, a bounded number at a time.

Dispatch inside one process: starting a run or answering a task pokes the worker; work that other processes queued is
found by looking every half second.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import ClassVar

from kneo.errors import Transient
from kneo.runtime.advance import Driver
from kneo.runtime.code import Elsewhere
from kneo.store import runs
from kneo.store.engine import Store

log = logging.getLogger("kneo.runtime")

POLL_SECONDS = 0.5

DRAIN_SECONDS = 30.0
"""How long steps that are under way may take to end when their process is to stop; then they are cut short."""


class Worker:
    """The one process that executes steps on a database. ``run`` blocks; ``poke`` and ``stop`` work from any thread."""

    DEFAULT_CONCURRENCY: ClassVar[int] = 4

    def __init__(self, store: Store, driver: Driver, *, concurrency: int = DEFAULT_CONCURRENCY) -> None:
        self.store = store
        self.driver = driver
        self.concurrency = concurrency
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._stopping = threading.Event()
        self._elsewhere: set[str] = set()

    def run(self) -> None:
        """Work until ``stop``. Steps that are under way are finished first."""
        asyncio.run(self._work())

    def poke(self) -> None:
        """Say that there may be a run to drive."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    def stop(self) -> None:
        self._stopping.set()
        self.driver.drain()
        self.poke()

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._clear_owners)
        busy: dict[str, asyncio.Task[None]] = {}
        while not self._stopping.is_set():
            self._news.clear()
            for run_id in self._find(self.concurrency - len(busy), set(busy)):
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

    def _find(self, room: int, busy: set[str]) -> list[str]:
        if room <= 0:
            return []
        try:
            # On SQLite, the only place of this worker, nobody keeps a reader waiting: shorter than a hop to a thread.
            found = self._runnable(room + len(busy) + len(self._elsewhere))
        except Transient as error:
            log.warning("could not look for runs: %s", error)
            return []
        return [run_id for run_id in found if run_id not in busy and run_id not in self._elsewhere][:room]

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
