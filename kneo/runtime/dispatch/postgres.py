"""Workers that share a PostgreSQL database. Queueing and noticing death are Procrastinate's; what is right is the fence's.

A job says that there may be something to do for a run. Its id is the driver's claim: a job that outlives its worker is
handed to another one, which takes the run over. Any other job for the same run finds it taken and is done at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from datetime import timedelta

from procrastinate import App, JobContext, PsycopgConnector
from procrastinate.exceptions import ProcrastinateException

from kneo.errors import Transient
from kneo.runtime.engine.driver import Driver
from kneo.runtime.engine.worker import DRAIN_SECONDS
from kneo.store import queue
from kneo.store.engine import Store

log = logging.getLogger("kneo.runtime")

HEARTBEAT_SECONDS = 1.0
STALLED_SECONDS = 3.0
"""A worker that has not been heard for this long counts as dead; at least three heartbeats."""

SWEEP_SECONDS = 0.5
"""How often every worker looks for jobs of dead ones."""

POLL_SECONDS = 1.0
"""How often a worker looks for jobs by itself: new ones are announced, one that is handed out again is not."""

RESTORE_SECONDS = 30.0
"""How often due runs without a job are looked for; there should never be any."""

RECONNECT_SECONDS = 1.0


class QueueWorker:
    """One of any number of processes that execute steps. ``run`` blocks; ``stop`` works from any thread."""

    def __init__(self, store: Store, driver: Driver, *, concurrency: int) -> None:
        self.store = store
        self.driver = driver
        self.concurrency = concurrency
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._working: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Work until ``stop``. Steps that are under way are finished first, and their runs let go of."""
        asyncio.run(self._run())

    def stop(self) -> None:
        self._stopping.set()
        self.driver.drain()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._working is not None:
            self._working.cancel()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            self._working = asyncio.create_task(self._work())
            try:
                await self._working
            except asyncio.CancelledError:
                if not self._stopping.is_set():
                    raise
            except (ProcrastinateException, Transient) as error:
                log.warning("lost the queue, will come back: %s", error)
                await asyncio.sleep(RECONNECT_SECONDS)
        await self.driver.close()

    async def _work(self) -> None:
        app = App(
            connector=PsycopgConnector(
                conninfo=self.store.conninfo, kwargs={"options": f"-c search_path={queue.SCHEMA}"}, max_size=4
            )
        )
        app.task(name=queue.TASK, queue=queue.QUEUE, pass_context=True)(self._drive)
        async with contextlib.AsyncExitStack() as closing:
            # Told to stop while it connects, the pool has to be closed too: it would go on trying, and never end.
            closing.push_async_callback(app.close_async)
            await app.open_async()
            sweeping = asyncio.create_task(self._sweep(app))
            try:
                await app.run_worker_async(
                    queues=[queue.QUEUE],
                    concurrency=self.concurrency,
                    install_signal_handlers=False,
                    delete_jobs="always",
                    shutdown_graceful_timeout=DRAIN_SECONDS,
                    update_heartbeat_interval=HEARTBEAT_SECONDS,
                    stalled_worker_timeout=10 * STALLED_SECONDS,
                    fetch_job_polling_interval=POLL_SECONDS,
                )
            finally:
                sweeping.cancel()
                await asyncio.wait([sweeping])

    async def _drive(self, context: JobContext, run_id: str) -> None:
        assert context.job is not None
        await self.driver.drive(run_id, claim=f"{queue.CLAIM_PREFIX}{context.job.id}")

    async def _sweep(self, app: App) -> None:
        """Hand out again what dead workers had, and what was lost in any other way."""
        last_restore = 0.0
        while True:
            try:
                for job in await app.job_manager.get_stalled_jobs(
                    queue=queue.QUEUE, seconds_since_heartbeat=STALLED_SECONDS
                ):
                    log.info("taking over the job of a worker that died", extra={"job_id": job.id})
                    await app.job_manager.retry_job(job)
                if asyncio.get_running_loop().time() - last_restore > RESTORE_SECONDS:
                    last_restore = asyncio.get_running_loop().time()
                    await self.driver.write(lambda tx: queue.restore(tx, timedelta(seconds=RESTORE_SECONDS)))
            except (ProcrastinateException, Transient) as error:
                log.warning("could not look for jobs of dead workers: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)
