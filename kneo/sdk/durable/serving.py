"""Continues executions of flows once their questions are answered, wherever that was."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kneo.clock import monotonic
from kneo.errors import KneoError
from kneo.records.run import RunStatus
from kneo.sdk.durable.flows import Flow

LOOK_SECONDS = 0.2
"""The interval in which the database is read for executions that may continue."""

RETRY_SECONDS = 30.0
"""The pause after an execution could not continue, such as while another process holds the worker lock."""

LIST_LIMIT = 1_000
"""The executions of one flow that are read at once; the others follow."""

_log = logging.getLogger("kneo.sdk")


@dataclass
class FlowServer:
    """The flows of one program, continued in threads of this process.

    Attributes:
        flows: The flows, each with a database of its own or a shared one.
        concurrency: The executions that run at once.
    """

    flows: Sequence[Flow]
    concurrency: int = 4
    _not_before: dict[str, float] = field(default_factory=dict)
    """The executions that run now (infinity), and those that failed to continue."""

    def serve(self, stopping: threading.Event) -> None:
        """Continue executions until the event is set; those that run end first or wait for people."""
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="kneo-flow") as pool:
            while not stopping.is_set():
                for flow in self.flows:
                    for run_id in self._due(flow):
                        self._not_before[run_id] = float("inf")
                        pool.submit(self._continue, flow, run_id)
                stopping.wait(LOOK_SECONDS)

    def _due(self, flow: Flow) -> Sequence[str]:
        host = flow.host()
        try:
            host.apply_timers()
            found = host.list_runs(flow.name, statuses={RunStatus.RUNNING}, newest=False, limit=LIST_LIMIT)
        except KneoError as error:
            _log.warning("%s: the executions of %s cannot be read.", error.message, flow.name)
            return ()
        now = monotonic()
        return [run_id for run_id in found if self._not_before.get(run_id, 0) <= now]

    def _continue(self, flow: Flow, run_id: str) -> None:
        try:
            execution = flow.resume(run_id)
        except Exception as error:  # noqa: BLE001 - one execution does not stop the others
            _log.warning("The execution %s of %s cannot continue now: %s", run_id, flow.name, error)
            self._not_before[run_id] = monotonic() + RETRY_SECONDS
        else:
            _log.info("The execution %s of %s is %s.", run_id, flow.name, execution.status)
            self._not_before.pop(run_id, None)
