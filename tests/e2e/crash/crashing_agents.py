"""A process that executes agents and kills itself at a chosen write.

Started by the crash tests: ``crashing_agents.py URL CODE_FOLDER RUN_ID WHEN DIE_AT``. WHEN is ``before`` or ``after`` the write
is committed; with DIE_AT 0 nothing is killed. The process ends when the run is over. Models are found as for every worker.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from crashing import find_key, kill_before

from kneo.clock import SystemClock, sleep
from kneo.errors import Transient
from kneo.records.run import RunStatus
from kneo.runtime.engine.assemble import StepWorker, open_sandboxes, services_of, worker_on
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.wait import find_run
from kneo.runtime.engine.worker import Driver
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.executor import Executor
from kneo.settings import from_env
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.writer import CommitNotifier


class KillingNotifier(CommitNotifier):
    """Kills the process right after the commit of a write, which it is told of next."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def notify(self, changes: Sequence[tuple[str, object]]) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().notify(changes)


def worker_of(store: Store, folder: Path) -> StepWorker:
    code = CodeLoader((folder,), ())
    sandboxes = open_sandboxes(from_env(), store, code)
    executor = Executor(code, sandboxes, services_of(from_env(), store, code, sandboxes))
    return worker_on(store, Driver(store, ProgramLoader(store), executor), concurrency=4)


def _is_over(store: Store, run_id: str) -> bool:
    try:
        return find_run(store, run_id).status not in {RunStatus.RUNNING, RunStatus.PAUSED}
    except Transient:  # the server ended the transaction of a process that was stopped in the middle of it
        return False


def main() -> None:
    url, folder, run_id, when, die_at = sys.argv[1:]
    store = open_store(url, SystemClock(), find_key)
    if int(die_at) and when == "after":
        store.notifier = KillingNotifier(int(die_at))
    worker = worker_of(store, Path(folder))
    if int(die_at) and when == "before":
        kill_before(int(die_at))
    working = threading.Thread(target=worker.run)
    working.start()
    while not _is_over(store, run_id):
        sleep(0.02)
    worker.stop()
    working.join()
    store.close()


if __name__ == "__main__":
    main()
