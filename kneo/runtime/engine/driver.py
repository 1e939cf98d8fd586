"""The driver: sessions with runs, and the event loop that their steps need.

A killed driver leaves a run whose last transaction is whole. A slow driver loses its epoch, and its results are discarded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from kneo.clock import new_id
from kneo.errors import Conflict, Transient
from kneo.runtime.engine.deltas import DEFAULT_BATCH
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.session import LOOK_SECONDS, RunSession, SessionDeps
from kneo.runtime.steps.executor import Executor
from kneo.runtime.steps.threads import BoundedThreads, in_thread
from kneo.store import runs
from kneo.store.delta_readers import ReaderCache
from kneo.store.engine import Store, Tx
from kneo.store.history import CheckpointLimits
from kneo.store.locks import Lock

log = logging.getLogger("kneo.runtime")

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
            with self.store.read() as tx:
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
