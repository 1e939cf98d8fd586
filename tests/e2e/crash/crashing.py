"""A process that executes steps and kills itself right before a chosen write reaches the database.

Started by the crash tests: ``crashing.py URL CODE_FOLDER RUN_ID DIE_AT [TASK_ID]``. It ends by itself when the run is
over; with DIE_AT 0 nothing is killed. With a task, it first answers it with yes.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine

from kneo.clock import SystemClock, sleep
from kneo.records.run import RunStatus
from kneo.runtime.engine.assemble import StepWorker, open_sandboxes
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.wait import find_run
from kneo.runtime.engine.worker import Driver, Worker
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.executor import Executor
from kneo.settings import from_env
from kneo.store.connections import WRITE
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.tasks.decisions import decision_from_value
from kneo.tasks.inbox import decide, find

sys.path.append(str(Path(__file__).parents[2] / "support"))
from installation_key import find_key


def kill_before(number: int) -> None:
    """Die, as if somebody pulled the plug, before this write is committed."""
    written = 0

    def count(connection: Connection) -> None:
        nonlocal written
        if connection.get_execution_options().get(WRITE):
            written += 1
            if written == number:
                os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "commit", count)


def worker_on(store: Store, folder: Path) -> StepWorker:
    code = CodeLoader((folder,), ())
    driver = Driver(store, ProgramLoader(store), Executor(code, open_sandboxes(from_env(), store, code)))
    if store.is_sqlite:
        return Worker(store, driver)
    dispatch = importlib.import_module("kneo.runtime.dispatch.postgres")
    stall = timedelta(seconds=from_env().execution.worker_stall_seconds)
    return dispatch.QueueWorker(store, driver, concurrency=4, stall=stall)


def approve(store: Store, task_id: str) -> None:
    with store.read() as tx:
        task = find(tx, task_id)
    decide(store, task_id, decision_from_value(task, True), actor="ann")


def main() -> None:
    url, folder, run_id, die_at, *tasks = sys.argv[1:]
    store = open_store(url, SystemClock(), find_key)
    worker = worker_on(store, Path(folder))
    if int(die_at):
        kill_before(int(die_at))
    for task in tasks:
        approve(store, task)
    working = threading.Thread(target=worker.run)
    working.start()
    while find_run(store, run_id).status in {RunStatus.RUNNING, RunStatus.PAUSED}:
        sleep(0.02)
    worker.stop()
    working.join()
    store.close()


if __name__ == "__main__":
    main()
