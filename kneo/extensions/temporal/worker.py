"""Workers that a Temporal server hands runs to. It queues, detects dead workers and retries; the fence keeps runs correct.

Temporal knows ids of runs and of claims only. A workflow stands for one claim on one run, and its id is the claim: an open
workflow cannot be started again, and the worker that retries its activity takes the run over.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from kneo.errors import Transient
from kneo.runtime.engine.worker import DRAIN_SECONDS, Driver, log_refused
from kneo.runtime.steps.code import CodeUnavailable
from kneo.store import queue, runs
from kneo.store.engine import Store, Tx
from kneo.trust.record_mac import RecordUnauthenticated

log = logging.getLogger("kneo.runtime")

TASK_QUEUE, WORKFLOW, ACTIVITY = "kneo-runs", "kneo.Drive", "kneo.drive"
WORKFLOW_PREFIX = "kneo-"

HEARTBEAT_SECONDS = 1.0
STALLED_SECONDS = 3.0
"""A driver without a heartbeat for this long counts as dead; at least three heartbeats."""

POLL_SECONDS = 0.5
"""The interval at which every worker polls for due runs."""

RESTORE_SECONDS = 30.0
"""The interval of the search for runs that the server lost, and of retries for code that no worker had."""

RECONNECT_SECONDS = 1.0

BATCH = 100
"""Runs that one poll hands to the server at most."""

FOREVER = timedelta(days=3650)
"""Steps have limits of their own; a driver has none but its heartbeat."""


@workflow.defn(name=WORKFLOW)
class Drive:
    """Retries driving a run until a worker finishes. Never changes."""

    @workflow.run
    async def run(self, run_id: str, claim: str) -> None:
        await workflow.execute_activity(
            ACTIVITY,
            args=[run_id, claim],
            start_to_close_timeout=FOREVER,
            heartbeat_timeout=timedelta(seconds=STALLED_SECONDS),
            retry_policy=RetryPolicy(
                initial_interval=timedelta(milliseconds=100), maximum_interval=timedelta(seconds=10), maximum_attempts=0
            ),
        )


@dataclass(frozen=True)
class TemporalServer:
    """The address of a Temporal server."""

    address: str
    namespace: str


class TemporalWorker:
    """One of any number of processes that execute steps. ``run`` blocks; ``stop`` works from any thread."""

    def __init__(
        self,
        store: Store,
        driver: Driver,
        server: TemporalServer,
        *,
        concurrency: int,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.driver = driver
        self.server = server
        self.concurrency = concurrency
        self._beat = beat
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wakeup = asyncio.Event()
        self._stopping = threading.Event()
        self._handed: dict[str, float] = {}
        """Claims that were handed to the server, and when."""

    @property
    def busy(self) -> int:
        """The number of runs that this worker drives."""
        return self.driver.busy

    def run(self) -> None:
        """Work until ``stop``; running steps are finished first, and their runs released."""
        with self.store.notifier.listen(queue.DUE, lambda _: self._wake()):
            asyncio.run(self._run())

    def stop(self) -> None:
        self._stopping.set()
        self.driver.drain()
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wakeup.set)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            self._beat()
            try:
                await self._work()
            # The library raises RuntimeError when it cannot connect, and when its own worker fails.
            except (RPCError, RuntimeError) as error:
                log.warning("no Temporal server at %s; reconnecting: %s", self.server.address, error)
                await self._pause(RECONNECT_SECONDS)
        await self.driver.close()

    async def _work(self) -> None:
        client = await Client.connect(self.server.address, namespace=self.server.namespace)
        worker = Worker(
            client,
            task_queue=TASK_QUEUE,
            workflows=[Drive],
            activities=[self._drive],
            workflow_runner=UnsandboxedWorkflowRunner(),
            # Otherwise the server would reserve a workflow for the worker that began it, ten seconds beyond that worker's death.
            max_cached_workflows=0,
            max_concurrent_activities=self.concurrency,
            max_heartbeat_throttle_interval=timedelta(seconds=HEARTBEAT_SECONDS),
            graceful_shutdown_timeout=timedelta(seconds=DRAIN_SECONDS),
        )
        async with worker:
            await self._hand_out(client)

    @activity.defn(name=ACTIVITY)
    async def _drive(self, run_id: str, claim: str) -> None:
        if not await _is_current():
            return
        driving = asyncio.create_task(self.driver.drive(run_id, claim=claim, parks=True))
        try:
            while not driving.done():
                activity.heartbeat()
                await asyncio.wait([driving], timeout=HEARTBEAT_SECONDS)
        except asyncio.CancelledError:
            # At a shutdown the run is released. Otherwise another worker drives it by now under the same claim: this
            # driver notices it by itself, and must not release the run.
            if activity.is_worker_shutdown():
                driving.cancel()
            await asyncio.wait([driving])
            raise
        try:
            driving.result()
        except CodeUnavailable as error:
            msg = "This worker does not have the run's code."
            raise ApplicationError(msg, next_retry_delay=timedelta(seconds=RESTORE_SECONDS)) from error
        except RecordUnauthenticated as error:
            log_refused(error, run_id)
            raise ApplicationError(error.message, next_retry_delay=timedelta(seconds=RESTORE_SECONDS)) from error

    async def _hand_out(self, client: Client) -> None:
        """Start a workflow for each due run, until ``stop``."""
        last_restore = -RESTORE_SECONDS
        while not self._stopping.is_set():
            self._beat()
            now = asyncio.get_running_loop().time()
            self._handed = {claim: at for claim, at in self._handed.items() if now - at < RESTORE_SECONDS}
            try:
                await self._start(client, await self.driver.read(self._claimable))
                if now - last_restore > RESTORE_SECONDS:
                    last_restore = now
                    await self.driver.write(queue.drop)
                    await self._start(client, await self.driver.read(_stalled))
            except (RPCError, Transient) as error:
                log.warning("could not hand out runs: %s", error)
            await self._pause(POLL_SECONDS)

    def _claimable(self, tx: Tx) -> list[tuple[str, str]]:
        found = runs.list_claimable(tx, BATCH + len(self._handed))
        return [(run_id, claim) for run_id, claim in found if claim not in self._handed][:BATCH]

    async def _start(self, client: Client, due: Sequence[tuple[str, str]]) -> None:
        for run_id, claim in due:
            try:
                await client.start_workflow(
                    WORKFLOW, args=[run_id, claim], id=f"{WORKFLOW_PREFIX}{claim}", task_queue=TASK_QUEUE
                )
            except WorkflowAlreadyStartedError:
                log.debug("the run has a workflow already", extra={"run_id": run_id})
            self._handed[claim] = asyncio.get_running_loop().time()

    async def _pause(self, seconds: float) -> None:
        """Wait for a wake-up, this many seconds at most."""
        try:
            await asyncio.wait_for(self._wakeup.wait(), seconds)
        except TimeoutError:
            return
        self._wakeup.clear()


async def _is_current() -> bool:
    """Return whether the server still waits for this attempt; one that reached a hung process may be over."""
    try:
        await activity.client().get_async_activity_handle(task_token=activity.info().task_token).heartbeat()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return True


def _stalled(tx: Tx) -> Sequence[tuple[str, str]]:
    return runs.find_stalled(tx, timedelta(seconds=RESTORE_SECONDS), 10 * BATCH)
