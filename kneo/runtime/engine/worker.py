"""The worker of one process, and the driver with which it drives each due run. A bounded number at a time.

The commit that makes a run due begins it, or queues it where the worker is full; runs that other processes make due are
found by polling every half second. A killed driver leaves a run whose last transaction is whole. A slow driver loses its epoch,
and its results are discarded. A loop that hangs makes its process not alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import ClassVar, TypeVar, cast

from kneo.clock import monotonic, new_id
from kneo.errors import Conflict, Transient
from kneo.runtime.engine.admission import FairQueue, find_excess
from kneo.runtime.engine.attempt import DEFAULT_BATCH
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.session import LOOK_SECONDS, RunSession, SessionDeps
from kneo.runtime.steps.code import CodeUnavailable
from kneo.runtime.steps.executor import Executor
from kneo.runtime.steps.threads import BoundedThreads, in_thread
from kneo.store import runs
from kneo.store.change_feed import ReaderCache
from kneo.store.engine import Store, Tx
from kneo.store.history import CheckpointLimits
from kneo.store.locks import Lock
from kneo.store.queue import DUE, DueRun
from kneo.trust.record_mac import RecordUnauthenticated

log = logging.getLogger("kneo.runtime")

POLL_SECONDS = LOOK_SECONDS

LEFT_SECONDS = 30.0
"""The time for which a run that nothing authenticates is left, in case it is adopted."""

DRAIN_SECONDS = 30.0
"""The time that running steps have to end when their process stops; then they are cancelled."""


def log_refused(error: RecordUnauthenticated, run_id: str) -> None:
    """Log that a run is left as it is, because nothing authenticates its row."""
    log.error("left a run as it is: %s", error, extra={"event": "record_refused", "run_id": run_id, "code": error.code})


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
        self._queue = FairQueue()
        self._busy: dict[str, RunSession] = {}
        self._left: dict[str, float] = {}
        """Runs that this process cannot drive, each with the monotonic time until which it leaves them."""
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
        with self.store.notifier.listen(DUE, lambda run: self._add(cast("DueRun", run))):
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

    def _find(self) -> tuple[DueRun, ...]:
        # The runs that may begin before the next poll, and those that are known already.
        self._left = {run_id: until for run_id, until in self._left.items() if until > monotonic()}
        limit = self.concurrency + len(self._busy) + len(self._left)
        try:
            with self.store.read() as tx:
                found = runs.list_runnable(tx, limit)
                firsts = runs.list_first_runnable(tx) if len(found) >= limit else ()
        except Transient as error:
            log.warning("could not poll for runs: %s", error)
            return ()
        self._has_more = len(found) >= limit
        return *found, *firsts

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

    def _add(self, *due: DueRun) -> None:
        """Queue due runs, and begin as many as the concurrency allows. Where others wait, a run gives way to them."""
        begun = []
        with self._lock:
            for run in due:
                if run.id not in self._left:
                    self._queue.add(run)
            driven = [self._busy[run.id] for run in due if run.id in self._busy]
            while (session := self._next()) is not None:
                begun.append(session)
            excess = self._queue.find_excess() if len(self._busy) >= self.concurrency else None
            if excess is not None:
                self._busy[excess].give_way()
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
                self._queue.end(session.run_id)

    def _next(self) -> RunSession | None:
        """Return a session with the next due run."""
        if self._loop is None or self._stopping or len(self._busy) >= self.concurrency:
            return None
        run_id = self._queue.take()
        if run_id is None:
            return None
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
            self._left[session.run_id] = math.inf
            log.warning("left a run to the process that has its code", extra={"run_id": session.run_id})
        except RecordUnauthenticated as error:
            self._left[session.run_id] = monotonic() + LEFT_SECONDS
            log_refused(error, session.run_id)
        except Exception:
            log.exception("driving a run failed; it will be retried", extra={"run_id": session.run_id})
        return True

    def _end(self, session: RunSession) -> RunSession | None:
        """Remove a session; return the next one to drive."""
        with self._lock:
            if self._busy.get(session.run_id) is not session:
                return None
            del self._busy[session.run_id]
            self._queue.end(session.run_id, is_full=session.is_full)
            following = self._next()
            needs_poll = self._stopping or (following is None and self._has_more)
        if needs_poll:
            self._wake()
        return following


LATE_SECONDS = 300.0
"""The age of a heartbeat from which a loop counts as hanging. A turn may wait half a minute for a connection, or seal a long log."""


class Heartbeat:
    """The latest turn of one loop. From any thread."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._at = now()

    def beat(self) -> None:
        """Record that a turn begins."""
        self._at = self._now()

    @property
    def age_seconds(self) -> float:
        return max(0.0, self._now() - self._at)


class Heartbeats:
    """The heartbeats of the loops of one worker."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self.steps = Heartbeat(now)
        """Looks for due runs."""
        self.timers = Heartbeat(now)
        """Processes deadlines, or waits for the process that does."""

    def ages(self) -> Mapping[str, float]:
        """Return the ages in seconds, by loop."""
        return {"steps": self.steps.age_seconds, "timers": self.timers.age_seconds}

    def is_alive(self) -> bool:
        """Return whether every loop had a turn in time. An unreachable database ends no loop."""
        return max(self.ages().values()) <= LATE_SECONDS


T = TypeVar("T")

DEFAULT_LIMITS = CheckpointLimits()

LOCK_SECONDS = 1.0
"""The interval at which a driver checks the worker lock."""

THREADS = 8
"""Sessions that are advanced at the same time, without those whose thread is in a function of a step."""


class LockLost(Conflict):
    """Another process took the worker lock."""

    default_code = "worker_running"

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"This process lost the worker lock while it executed {run_id}; another process holds it now.",
            hint="The run is released: the other process continues it, or this program after a restart.",
        )


class Driver:
    """Drives runs until they settle. One per process; safe for many runs at once."""

    def __init__(
        self,
        store: Store,
        programs: ProgramLoader,
        executor: Executor,
        limits: CheckpointLimits = DEFAULT_LIMITS,
        delta_batch: timedelta = DEFAULT_BATCH,
    ) -> None:
        self.store = store
        self.threads = BoundedThreads(THREADS)
        self._deps = SessionDeps(store, programs, executor, limits, self.threads, ReaderCache(store), delta_batch)
        self._driven: dict[RunSession, asyncio.Future[None]] = {}
        """Sessions of ``drive``, each with the future that is done when the session is over."""
        self._checking: asyncio.Task[None] | None = None

    def session(
        self,
        run_id: str,
        loop: asyncio.AbstractEventLoop,
        resume: Callable[[RunSession], object],
        *,
        claim: str | None = None,
        parks: bool = False,
    ) -> RunSession:
        """Return a session with a run; see ``RunSession``. Without a claim the session gets a new one."""
        claim = claim or new_id("claim", self.store.clock.now())
        return RunSession(self._deps, run_id, claim, loop, resume, parks=parks)

    @property
    def busy(self) -> int:
        """The number of runs that ``drive`` advances."""
        return len(self._driven)

    def check(self, sessions: Sequence[RunSession]) -> Sequence[RunSession]:
        """Check the leases of suspended and busy sessions, and wake those with a signal.

        Call it every ``LOOK_SECONDS``. One statement for all sessions.

        Returns:
            Stopped sessions whose thread is in a function that may never return.
        """
        waiting = [session for session in sessions if session.needs_check()]
        if not waiting:
            return ()
        try:
            with self.store.look() as tx:
                leases = runs.read_leases(tx, [session.run_id for session in waiting])
        except Transient as error:
            log.warning("could not check the runs of this process: %s", error)
            return ()
        return [session for session in waiting if not session.check(leases.get(session.run_id))]

    async def drive(self, run_id: str, *, claim: str | None = None, parks: bool = False) -> None:
        """Advance a run until it settles, with this loop for its steps; on cancellation the run is released.

        With ``parks`` a run that has nothing to do for a while is released too; a worker has to find it when it is due.

        Raises:
            Transient, CodeUnavailable: as ``RunSession.advance``.
        """
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        session = self.session(run_id, loop, lambda one: self._advance(one, over), claim=claim, parks=parks)
        self._driven[session] = over
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check_driven())
        self._advance(session, over)
        try:
            await asyncio.wait([over])
        except asyncio.CancelledError:
            await in_thread(session.cut)
            if not session.is_calling:
                await asyncio.wait([over])
            raise
        finally:
            del self._driven[session]
        over.result()

    def _advance(self, session: RunSession, over: asyncio.Future[None]) -> None:
        def settle(error: Exception | None) -> None:
            if not over.done():
                over.set_result(None) if error is None else over.set_exception(error)

        def advance() -> None:
            failure: Exception | None = None
            try:
                if not session.advance():
                    return
            except Exception as error:  # noqa: BLE001 - raised where the session is waited for
                failure = error
            loop = over.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, failure)

        self.threads.submit(advance)

    def give_way(self, environment: str | None) -> None:
        """Let a run that ``drive`` advances give way to a due one of an environment, where that has less than its share."""
        sessions = {session.run_id: session for session in self._driven}
        driven = {run_id: (session.environment, session.since) for run_id, session in sessions.items()}
        excess = find_excess(driven, [environment])
        if excess is not None:
            sessions[excess].give_way()

    async def _check_driven(self) -> None:
        while self._driven:
            await asyncio.sleep(LOOK_SECONDS)
            for session in await in_thread(lambda: self.check(list(self._driven))):
                over = self._driven.get(session)
                if over is not None and not over.done():
                    over.set_result(None)

    async def drive_alone(self, run_id: str, lock: Lock | None = None) -> None:
        """Drive one run, then close the executor.

        Args:
            run_id: The run.
            lock: The worker lock. A lost lock is taken again at once; where another process holds it by then, running steps
                are cancelled and the run is released.

        Raises:
            LockLost: another process took the lock.
            Transient, CodeUnavailable: as ``RunSession.advance``.
        """
        driving = asyncio.ensure_future(self.drive(run_id))
        try:
            while not (await asyncio.wait([driving], timeout=LOCK_SECONDS))[0]:
                if lock is not None and not await in_thread(lock.renew):
                    raise LockLost(run_id)
            driving.result()
        finally:
            if driving.cancel():
                await asyncio.wait([driving])
            await self.close()

    def drain(self) -> None:
        """Begin no further steps: runs are released when their running steps have ended."""
        self._deps.draining.set()

    async def close(self) -> None:
        await self._deps.executor.close()

    async def write(self, work: Callable[[Tx], T]) -> T:
        """Write without blocking the event loop."""
        return await asyncio.wrap_future(self.store.submit(work))

    async def read(self, work: Callable[[Tx], T]) -> T:
        """Read without blocking the event loop."""

        def transaction() -> T:
            with self.store.read() as tx:
                return work(tx)

        return await asyncio.to_thread(transaction)
