"""Driving runs: sessions for those who have runs to drive, and the event loop that their steps need.

A driver that is killed leaves a run whose last transaction is whole. One that was only slow finds its epoch gone and
what it has is discarded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from kneo.clock import new_id
from kneo.runtime.load import ProgramLoader
from kneo.runtime.session import LOOK_SECONDS, Means, Session
from kneo.runtime.steps import Executor
from kneo.runtime.steps.threads import in_thread
from kneo.store.engine import Store, Tx
from kneo.store.history import CheckpointLimits

T = TypeVar("T")

DEFAULT_LIMITS = CheckpointLimits()


class Driver:
    """Drives runs to their next pause or end. One per process; safe for many runs at once."""

    def __init__(
        self,
        store: Store,
        programs: ProgramLoader,
        executor: Executor,
        limits: CheckpointLimits = DEFAULT_LIMITS,
    ) -> None:
        self.store = store
        self._means = Means(store, programs, executor, limits)

    def session(self, run_id: str, loop: asyncio.AbstractEventLoop, *, claim: str | None = None) -> Session:
        """Make what drives a run in a thread; see ``Session``. Left out, the claim is one that nobody has."""
        return Session(self._means, run_id, claim or new_id("claim", self.store.clock.now()), loop)

    async def drive(self, run_id: str, *, claim: str | None = None) -> None:
        """Advance a run until it waits or ends, with this loop for its steps; cancelled, the run is let go of.

        Raises:
            Transient, Elsewhere: as ``Session.go``.
        """
        session = self.session(run_id, asyncio.get_running_loop(), claim=claim)
        driving = asyncio.ensure_future(in_thread(session.go))
        try:
            while not (await asyncio.wait([driving], timeout=LOOK_SECONDS))[0]:
                if session.is_calling and not await in_thread(session.look):
                    return
        except asyncio.CancelledError:
            await in_thread(session.cut)
            if not session.is_calling:
                await asyncio.wait([driving])
            raise
        driving.result()

    async def drive_alone(self, run_id: str) -> None:
        """Drive one run and end what was kept for further ones."""
        try:
            await self.drive(run_id)
        finally:
            await self.close()

    def drain(self) -> None:
        """Begin no further steps: runs are let go of when what is under way in them has ended."""
        self._means.draining.set()

    async def close(self) -> None:
        await self._means.executor.close()

    async def write(self, work: Callable[[Tx], T]) -> T:
        """Write without keeping the loop waiting."""
        return await asyncio.wrap_future(self.store.submit(work))

    async def read(self, work: Callable[[Tx], T]) -> T:
        """Read without keeping the loop waiting."""

        def transaction() -> T:
            with self.store.read() as tx:
                return work(tx)

        return await asyncio.to_thread(transaction)
