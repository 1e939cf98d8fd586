"""The worker of one process: it drives due runs, a bounded number at a time.

The commit that makes a run due begins it, or queues it where the worker is full; runs that other processes make due are
found by polling every half second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
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
"""The time that running steps have to end when their process stops; then they are cancelled."""


class Worker:
    """The one process that executes steps on a database. ``run`` blocks; ``stop`` works from any thread."""

    DEFAULT_CONCURRENCY: ClassVar[int] = 4

    def __init__(
        self,
        store: Store,
        driver: Driver,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.driver = driver
        self.concurrency = concurrency
        self._beat = beat
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop of steps that are not plain functions; runs begin only while there is one."""
        self._wakeup = asyncio.Event()
        self._stopping = False
        self._due: dict[str, None] = {}
        """Due runs that have not begun, in order."""
        self._busy: dict[str, RunSession] = {}
        self._without_code: set[str] = set()
        """Runs whose code is in other processes."""
        self._checked_at = 0.0
        """The monotonic time of the last check of this worker's sessions."""
        self._has_more = False
        """Whether the last poll reached its limit."""

    @property
    def busy(self) -> int:
        """The number of runs that this worker drives."""
        return len(self._busy)

    def run(self) -> None:
        """Work until ``stop``; running steps are finished first."""
        with self.store.notifier.listen(DUE, lambda run_id: self._add(str(run_id))):
            asyncio.run(self._work())

    def stop(self) -> None:
        self._stopping = True
        self.driver.drain()
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wakeup.set)

    # ---- the event loop: polling, and sessions with long functions --------------------------------------------------

    async def _work(self) -> None:
        await in_thread(self._clear_owners)
        self._loop = asyncio.get_running_loop()
        while not self._stopping:
            self._beat()
            self._wakeup.clear()
            # A read of SQLite never waits, and is shorter than a hop to a thread.
            self._add(*self._find())
            await self._pause()
            await self._check_sessions()
        await self._drain()
        await self.driver.close()

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._wakeup.wait(), POLL_SECONDS)
        except TimeoutError:
            return

    def _find(self) -> tuple[str, ...]:
        # The runs that may begin before the next poll, and those that are known already.
        limit = self.concurrency + len(self._busy) + len(self._without_code)
        try:
            with self.store.read() as tx:
                found = runs.list_runnable(tx, limit)
        except Transient as error:
            log.warning("could not poll for runs: %s", error)
            return ()
        self._has_more = len(found) >= limit
        return found

    async def _check_sessions(self) -> None:
        if monotonic() - self._checked_at < LOOK_SECONDS:
            return
        self._checked_at = monotonic()
        sessions = list(self._busy.values())
        lost = await in_thread(lambda: self.driver.check(sessions)) if sessions else ()
        for session in lost:
            # The session was stopped while its thread is in a function that may never return.
            following = self._end(session)
            if following is not None:
                self._begin(following)

    async def _drain(self) -> None:
        deadline = monotonic() + DRAIN_SECONDS
        while self._busy and monotonic() < deadline:
            self._wakeup.clear()
            await self._pause()
            await self._check_sessions()
        for session in list(self._busy.values()):
            await in_thread(session.cut)

    def _clear_owners(self) -> None:
        with self.store.write() as tx:
            freed = runs.clear_owners(tx)
        if freed:
            log.info("released the runs of a process that ended", extra={"count": freed})

    # ---- the threads: one run after the other ---------------------------------------------------------------------

    def _add(self, *run_ids: str) -> None:
        """Queue due runs, and begin as many as the concurrency allows."""
        begun = []
        with self._lock:
            self._due |= dict.fromkeys(run_id for run_id in run_ids if run_id not in self._without_code)
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
            # The caller has committed and must not fail. The next poll finds the run again.
            log.warning("no thread to drive a run: %s", error, extra={"run_id": session.run_id})
            with self._lock:
                self._busy.pop(session.run_id, None)

    def _next(self) -> RunSession | None:
        """Return a session with the next due run. A due run that is still driven stays queued: its driver may have released it."""
        if self._loop is None or self._stopping or len(self._busy) >= self.concurrency:
            return None
        run_id = next((run_id for run_id in self._due if run_id not in self._busy), None)
        if run_id is None:
            return None
        del self._due[run_id]
        session = self._busy[run_id] = self.driver.session(run_id, self._loop, self._begin, parks=True)
        return session

    def _drive(self, session: RunSession | None) -> None:
        while session is not None:
            session = self._end(session) if self._advance(session) else None

    def _advance(self, session: RunSession) -> bool:
        """Advance a session; return whether it is over."""
        try:
            return session.advance()
        except CodeUnavailable:
            # This process will not get the code; polling for the run again is useless.
            self._without_code.add(session.run_id)
            log.warning("left a run to the process that has its code", extra={"run_id": session.run_id})
        except Exception:
            log.exception("driving a run failed; it will be retried", extra={"run_id": session.run_id})
        return True

    def _end(self, session: RunSession) -> RunSession | None:
        """Remove a session; return the next one to drive."""
        with self._lock:
            if self._busy.get(session.run_id) is not session:
                return None
            del self._busy[session.run_id]
            following = self._next()
            needs_poll = self._stopping or (following is None and self._has_more)
        if needs_poll:
            self._wake()
        return following
