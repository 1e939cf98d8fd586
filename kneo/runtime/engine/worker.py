"""Finding runs that nobody drives and driving them, a bounded number at a time.

Dispatch inside one process: the commit that makes a run due has it begun, or lines it up where there is no room; what
other processes made due is found by looking every half second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import ClassVar

from kneo.clock import monotonic
from kneo.errors import Transient
from kneo.runtime.engine.driver import Driver
from kneo.runtime.engine.session import LOOK_SECONDS, RunSession
from kneo.runtime.steps.code import CodeUnavailable
from kneo.runtime.steps.threads import in_thread
from kneo.store import runs
from kneo.store.engine import Store
from kneo.store.queue import DUE

log = logging.getLogger("kneo.runtime")

POLL_SECONDS = LOOK_SECONDS

DRAIN_SECONDS = 30.0
"""How long steps that are under way may take to end when their process is to stop; then they are cut short."""


class Worker:
    """The one process that executes steps on a database. ``run`` blocks; ``stop`` works from any thread."""

    DEFAULT_CONCURRENCY: ClassVar[int] = 4

    def __init__(self, store: Store, driver: Driver, *, concurrency: int = DEFAULT_CONCURRENCY) -> None:
        self.store = store
        self.driver = driver
        self.concurrency = concurrency
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where steps go that are not plain functions; runs are begun while there is one."""
        self._news = asyncio.Event()
        self._stopping = False
        self._due: dict[str, None] = {}
        """Runs that are due and were not begun yet, in order."""
        self._busy: dict[str, RunSession] = {}
        self._elsewhere: set[str] = set()
        """Runs whose code is in other processes."""
        self._checked_at = 0.0
        """When the sessions of this worker were last checked, on the monotonic clock."""
        self._may_be_more = False
        """Whether the last look found as many as it asked for."""

    def run(self) -> None:
        """Work until ``stop``. Steps that are under way are finished first."""
        with self.store.notifier.listen(DUE, lambda run_id: self._add(str(run_id))):
            asyncio.run(self._work())

    def stop(self) -> None:
        self._stopping = True
        self.driver.drain()
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._news.set)

    # ---- the loop: what nobody told of, and functions that take long ----------------------------------------------

    async def _work(self) -> None:
        await in_thread(self._clear_owners)
        self._loop = asyncio.get_running_loop()
        while not self._stopping:
            self._news.clear()
            # Nobody keeps a reader of a SQLite file waiting: shorter than a hop to a thread.
            self._add(*self._find())
            await self._pause()
            await self._look_after()
        await self._drain()
        await self.driver.close()

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._news.wait(), POLL_SECONDS)
        except TimeoutError:
            return

    def _find(self) -> tuple[str, ...]:
        # As many as there may be room for until the next look, beside those that are known.
        limit = self.concurrency + len(self._busy) + len(self._elsewhere)
        try:
            with self.store.read() as tx:
                found = runs.list_runnable(tx, limit)
        except Transient as error:
            log.warning("could not look for runs: %s", error)
            return ()
        self._may_be_more = len(found) >= limit
        return found

    async def _look_after(self) -> None:
        if monotonic() - self._checked_at < LOOK_SECONDS:
            return
        self._checked_at = monotonic()
        sessions = list(self._busy.values())
        lost = await in_thread(lambda: self.driver.check(sessions)) if sessions else ()
        for session in lost:
            # Its thread is in a function that may never return; nothing of it counts any more.
            follows = self._end(session)
            if follows is not None:
                self._begin(follows)

    async def _drain(self) -> None:
        deadline = monotonic() + DRAIN_SECONDS
        while self._busy and monotonic() < deadline:
            self._news.clear()
            await self._pause()
            await self._look_after()
        for session in list(self._busy.values()):
            await in_thread(session.cut)

    def _clear_owners(self) -> None:
        with self.store.write() as tx:
            freed = runs.clear_owners(tx)
        if freed:
            log.info("took over runs of a process that ended", extra={"count": freed})

    # ---- the threads: one run after the other ---------------------------------------------------------------------

    def _add(self, *run_ids: str) -> None:
        """Line up runs that are due, and begin those that there is room for."""
        begun = []
        with self._lock:
            self._due |= dict.fromkeys(run_id for run_id in run_ids if run_id not in self._elsewhere)
            driven = [self._busy[run_id] for run_id in run_ids if run_id in self._busy]
            while (session := self._next()) is not None:
                begun.append(session)
        for session in driven:
            session.wake()
        for session in begun:
            self._begin(session)

    def _begin(self, session: RunSession) -> None:
        try:
            self.driver.threads.submit(lambda: self._drive(session))
        except RuntimeError as error:
            # Whoever told us has committed, and is not to suffer for it. The next look finds the run again.
            log.warning("no thread to drive a run: %s", error, extra={"run_id": session.run_id})
            with self._lock:
                self._busy.pop(session.run_id, None)

    def _next(self) -> RunSession | None:
        """Choose what to begin. A run that is due while it is driven is kept: its driver may have let go of it already."""
        if self._loop is None or self._stopping or len(self._busy) >= self.concurrency:
            return None
        run_id = next((run_id for run_id in self._due if run_id not in self._busy), None)
        if run_id is None:
            return None
        del self._due[run_id]
        session = self._busy[run_id] = self.driver.session(run_id, self._loop, self._begin)
        return session

    def _drive(self, session: RunSession | None) -> None:
        while session is not None:
            session = self._end(session) if self._advance(session) else None

    def _advance(self, session: RunSession) -> bool:
        """Advance a session; return whether it is over."""
        try:
            return session.advance()
        except CodeUnavailable:
            # It will not come to have that code; looking again every half second would only be noise.
            self._elsewhere.add(session.run_id)
            log.warning("left a run to the program that has its code", extra={"run_id": session.run_id})
        except Exception:
            log.exception("driving a run failed; it will be tried again", extra={"run_id": session.run_id})
        return True

    def _end(self, session: RunSession) -> RunSession | None:
        """Take a session off the list; return what to drive instead."""
        with self._lock:
            if self._busy.get(session.run_id) is not session:
                return None
            del self._busy[session.run_id]
            follows = self._next()
            wanted = self._stopping or (follows is None and self._may_be_more)
        if wanted:
            self._wake()
        return follows
