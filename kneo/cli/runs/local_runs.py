"""Runs on the local database: driving them to their next pause or end."""

from __future__ import annotations

import threading

from kneo.cli.project import registered_tools
from kneo.records.run import Run
from kneo.runtime.engine.assemble import drive_or_wait
from kneo.runtime.engine.wait import SettledRun, read_settled_run
from kneo.runtime.steps.code import CodeUnavailable
from kneo.settings import Settings
from kneo.store.engine import Store


class LocalDriver:
    """Executes the steps of runs, unless another process does; otherwise it waits for that process."""

    def __init__(self, settings: Settings, store: Store, actor: str) -> None:
        self.settings = settings
        self.store = store
        self.actor = actor
        self._driving = threading.Lock()
        """Held while a run is driven: two runs of one process follow each other, because one process executes steps."""

    def drive_aside(self, run_id: str) -> None:
        """Drive a run in a thread of its own. The thread ends with this process, as it would in a crash."""
        threading.Thread(target=self.drive, args=(run_id,), daemon=True).start()

    def drive(self, run_id: str) -> Run:
        """Drive a run to its next pause or end, or wait for the process that executes steps on this database to do it.

        A run whose code is in a Python program stays running: that program continues it.
        """
        return self.settle(run_id).run

    def settle(self, run_id: str) -> SettledRun:
        """Drive a run as ``drive`` does; return it with its open tasks."""
        tools = registered_tools(self.settings)
        try:
            with self._driving:
                return drive_or_wait(self.settings, self.store, run_id, self.settings.client_timeout_seconds, tools)
        except CodeUnavailable:
            return read_settled_run(self.store, run_id)
