"""Workers that share a PostgreSQL database. Procrastinate queues jobs; the fence keeps runs correct.

A worker holds a lock of its session as its sign of life: a killed one loses it at once, and one that is slow or stopped for a
while keeps it.

A job announces work for a run. Its id is the driver's claim: a job that outlives its worker is handed to another one, which
takes the run over. Every other job for the same run finds it driven and ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from procrastinate import App, JobContext, PsycopgConnector
from procrastinate.connector import BaseConnector
from procrastinate.exceptions import ProcrastinateException
from procrastinate.jobs import Job, Notification
from procrastinate.manager import JobManager, NotificationCallback
from psycopg import AsyncConnection
from psycopg import Error as PsycopgError
from psycopg_pool import AsyncConnectionPool

from kneo.clock import isoformat
from kneo.errors import Transient
from kneo.runtime.engine import quotas
from kneo.runtime.engine.worker import DRAIN_SECONDS, Driver, log_refused
from kneo.settings import ExecutionSettings
from kneo.store import queue, runs
from kneo.store.connections import is_readable
from kneo.store.engine import Store, Tx
from kneo.trust.record_mac import RecordUnauthenticated

log = logging.getLogger("kneo.runtime")

TURN_SECONDS = 1.0
"""The interval at which every worker gives a sign of life, and looks for jobs of dead ones."""

GONE = timedelta(seconds=2)
"""A worker without a session and without a heartbeat for this long is dead; at least two turns."""

STALL = timedelta(seconds=ExecutionSettings.worker_stall_seconds)

POLL_SECONDS = 10.0
"""The polling interval, for announcements that were lost."""

ABORT_SECONDS = 60.0
"""The interval of the library's search for jobs to abort, which there never are."""

RESTORE_SECONDS = 30.0
"""The interval of the search for due runs without a job, and for jobs that ended and are in progress in the queue; there should
never be any.
"""

BATCH = 8
"""The most jobs that one statement fetches."""

RECONNECT_SECONDS = 1.0

RESUMED = 1_000
"""Parked runs that one search enqueues."""


class QueueWorker:
    """One of any number of processes that execute steps. ``run`` blocks; ``stop`` works from any thread.

    Args:
        store: The database.
        driver: Drives the runs.
        concurrency: Runs that are driven at the same time.
        beat: Called at each turn.
        stall: The time without a sign of life after which a worker that is still connected counts as dead.
    """

    def __init__(
        self,
        store: Store,
        driver: Driver,
        *,
        concurrency: int,
        beat: Callable[[], None] = lambda: None,
        stall: timedelta = STALL,
    ) -> None:
        self.store = store
        self.driver = driver
        self.concurrency = concurrency
        self._beat = beat
        self._stall = max(stall, 2 * GONE)
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._working: asyncio.Task[None] | None = None
        self._driven = 0
        self._ended: dict[int, float] = {}
        """The ids of the jobs that ended lately, with the time: those whose end could not be stored are retried."""

    @property
    def busy(self) -> int:
        """The number of runs that this worker drives."""
        return self.driver.busy

    def run(self) -> None:
        """Work until ``stop``; running steps are finished first, and their runs released."""
        asyncio.run(self._run())

    def stop(self) -> None:
        if self._stopping.is_set():
            return  # a second cancellation would end the steps that the first one lets finish
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
            self._beat()
            self._working = asyncio.create_task(self._work())
            try:
                await self._working
            except asyncio.CancelledError:
                if not self._stopping.is_set():
                    raise
            except (ProcrastinateException, Transient) as error:
                log.warning("the queue is unavailable; reconnecting: %s", error)
                await asyncio.sleep(RECONNECT_SECONDS)
        await self.driver.close()

    async def _work(self) -> None:
        app = App(
            connector=PsycopgConnector(
                conninfo=self.store.conninfo,
                kwargs={"options": f"-c search_path={queue.SCHEMA}"},
                max_size=4,
                configure=_commit_each,
                pool_factory=_pool,
            )
        )
        app.job_manager = jobs = _Jobs(app.connector, self._free)
        app.task(name=queue.TASK, queue=queue.QUEUE, pass_context=True)(self._drive)
        async with contextlib.AsyncExitStack() as closing:
            # A stop during the connection closes the pool too: it would retry for ever.
            closing.push_async_callback(app.close_async)
            await app.open_async()
            sweeping = asyncio.create_task(self._watch(jobs))
            try:
                await app.run_worker_async(
                    queues=[queue.QUEUE],
                    concurrency=self.concurrency,
                    install_signal_handlers=False,
                    delete_jobs="always",
                    shutdown_graceful_timeout=DRAIN_SECONDS,
                    stalled_worker_timeout=10 * self._stall.total_seconds(),
                    fetch_job_polling_interval=POLL_SECONDS,
                    abort_job_polling_interval=ABORT_SECONDS,
                )
            finally:
                sweeping.cancel()
                await asyncio.wait([sweeping])

    def _free(self) -> int:
        """Return how many further runs this worker may drive."""
        return self.concurrency - self._driven

    async def _drive(self, context: JobContext, run_id: str) -> None:
        assert context.job is not None
        assert context.job.id is not None
        self._ended.pop(context.job.id, None)
        self._driven += 1
        try:
            await self.driver.drive(run_id, claim=f"{queue.CLAIM_PREFIX}{context.job.id}", parks=True)
        except RecordUnauthenticated as error:
            # The search for runs without a job finds it again.
            log_refused(error, run_id)
        finally:
            self._driven -= 1
            self._ended[context.job.id] = asyncio.get_running_loop().time()

    async def _watch(self, jobs: _Jobs) -> None:
        """Give signs of life on a session of this worker, and open another one where it breaks."""
        watching = asyncio.current_task()
        # A statement whose connection breaks while it is cancelled raises an error of the database instead of the cancellation.
        while watching is not None and not watching.cancelling():
            try:
                await self._watch_session(jobs)
            except (ProcrastinateException, PsycopgError, Transient) as error:
                log.warning("could not look for jobs of dead workers: %s", error)
                await asyncio.sleep(TURN_SECONDS)

    async def _watch_session(self, jobs: _Jobs) -> None:
        worker_id = await jobs.registered
        last_restore = 0.0
        async with await AsyncConnection.connect(self.store.conninfo, autocommit=True) as session:
            await session.execute("SELECT pg_advisory_lock(%s, %s)", (queue.SIGN_OF_LIFE, worker_id))
            while True:
                self._beat()
                await self._turn(jobs, session, worker_id)
                if asyncio.get_running_loop().time() - last_restore > RESTORE_SECONDS:
                    last_restore = asyncio.get_running_loop().time()
                    await self.driver.write(_restore)
                    await self._retry_ended(jobs, last_restore - RESTORE_SECONDS)
                await asyncio.sleep(TURN_SECONDS)

    async def _turn(self, jobs: _Jobs, session: AsyncConnection, worker_id: int) -> None:
        """Give a sign of life, retry the jobs of dead workers, enqueue parked runs whose time has come, and let
        a run give way to one of another environment.
        """
        now = self.store.clock.now()
        values = {"worker": worker_id, "stall": self._stall, "gone": GONE, "now": isoformat(now)}
        for what, found in await (await session.execute(queue.WATCH, values)).fetchall():
            if what == "dead":
                log.info("taking over the job of a worker that died", extra={"job_id": int(found)})
                # Ahead of the server's clock the job would not be found yet.
                await jobs.retry_job_by_id_async(int(found), now - timedelta(minutes=1))
                await session.execute(queue.ANNOUNCE, {"job": int(found)})
            elif what == "due":
                await self.driver.write(_resume)
            elif what == "next" and self.busy >= self.concurrency:
                self.driver.give_way(found)

    async def _retry_ended(self, jobs: _Jobs, before: float) -> None:
        """Retry the jobs of this process that ended before a time and are still in progress in the queue.

        The database did not respond when their end was to be stored. Their worker is alive, so no other one would take them
        over, and their runs would count as driven.
        """
        ended = {job_id for job_id, at in self._ended.items() if at <= before}
        if not ended:
            return
        for job in await jobs.list_jobs_async(queue=queue.QUEUE, status="doing"):
            if job.id in ended & self._ended.keys():
                log.warning("retrying a job whose end could not be stored", extra={"job_id": job.id})
                await jobs.retry_job(job)
        for job_id in ended:
            if self._ended.get(job_id, before + 1) <= before:
                del self._ended[job_id]


class _Jobs(JobManager):
    """The jobs of the queue, fetched in batches. The heartbeat of the worker is stored with its other signs of life.

    The library's worker goes on without heartbeats after the first one that fails, because its watch over them ends with its
    search for periodic jobs, which finds none. Other workers would then execute each of its steps a second time.

    The library's worker also forgets an announcement that arrives while it searches in vain, and would find that job at its next
    poll only; and it searches once more after each job that it has found.

    Args:
        connector: The database.
        free: Returns how many further jobs the worker may take.
    """

    def __init__(self, connector: BaseConnector, free: Callable[[], int]) -> None:
        super().__init__(connector)
        self._free = free
        self._fetched = deque[Job]()
        self._announced = 0
        """The number of announcements so far."""
        self._empty_at: int | None = None
        """The number of announcements at which a search found the queue empty, until the next search."""
        self.registered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The id of the worker."""

    async def register_worker(self) -> int:
        """Register the worker; return its id."""
        worker_id = await super().register_worker()
        self.registered.set_result(worker_id)
        return worker_id

    async def listen_for_jobs(
        self, *, on_notification: NotificationCallback, queues: Iterable[str] | None = None
    ) -> None:
        """Call back at each announcement of a job, and count it."""

        async def announced(*, channel: str, notification: Notification) -> None:
            self._announced += 1
            await on_notification(channel=channel, notification=notification)

        await super().listen_for_jobs(on_notification=announced, queues=queues)

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> Job | None:
        """Return the next job, of those that the last statement fetched or of the queue."""
        if self._fetched:
            return self._fetched.popleft()
        if self._empty_at == self._announced:
            self._empty_at = None
            return None
        while True:
            announced = self._announced
            most = max(1, min(BATCH, self._free()))
            rows = await self.connector.execute_query_all_async(
                queue.FETCH, queues=queues, worker_id=worker_id, most=most
            )
            if rows or announced == self._announced:
                break
        self._empty_at = announced if 0 < len(rows) < most else None
        self._fetched.extend(map(Job.from_row, rows))
        return self._fetched.popleft() if self._fetched else None

    async def update_heartbeat(self, worker_id: int) -> None:
        """Do nothing: each turn of the worker stores a heartbeat."""


async def _commit_each(connection: AsyncConnection) -> None:
    """Let each statement of the queue be a transaction: three messages to the server become one."""
    await connection.set_autocommit(True)


def _pool(**arguments: Any) -> AsyncConnectionPool:  # noqa: ANN401 - those of the connector
    """Return a pool that checks a connection by a statement only where its server has sent something."""

    async def check(connection: AsyncConnection) -> None:
        if is_readable(connection):
            await AsyncConnectionPool.check_connection(connection)

    return AsyncConnectionPool(**{**arguments, "check": check})


def _resume(tx: Tx) -> None:
    for run in runs.list_resumable(tx, RESUMED):
        queue.enqueue(tx, *run)


def _restore(tx: Tx) -> None:
    queue.restore(tx, timedelta(seconds=RESTORE_SECONDS), quotas.count_free)
