"""``kneo sdk serve``: a process that continues the flows of a program."""

from __future__ import annotations

import importlib
import logging
import runpy
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.serve.worker import logged_settings, until_stopped
from kneo.clock import monotonic
from kneo.errors import KneoError, Usage
from kneo.records.run import RunStatus
from kneo.sdk.durable.flows import Flow

app = typer.Typer(no_args_is_help=True)


@app.callback()
def sdk() -> None:
    """Run programs written with the Python SDK."""


@examples("kneo sdk serve myapp.flows", "kneo sdk serve flows.py --concurrency 8")
def serve_flows(
    module: Annotated[str, typer.Argument(help="Module or file of the program that defines the flows.")],
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=256, help="Executions to run at once.")] = 4,
) -> None:
    """Continue the flows of a program whenever their questions are answered.

    Answers come from the CLI, the API and the console. Run an API server next to it with: kneo service serve --workers 0.
    """
    logged_settings()
    flows = find_flows(module)
    for each in flows:
        if each.database is not None:
            each.database.check_service_key()
    server = FlowServer(flows, concurrency)
    render.text(f"Serving {', '.join(each.name for each in flows)}. Stop with Ctrl-C.")
    until_stopped(server.serve)


def find_flows(module: str) -> list[Flow]:
    """Import a program and return its flows.

    Raises:
        Usage: the program cannot be imported, has no flow, has two of one name, or a flow without a database.
    """
    path = Path(module)
    sys.path.insert(0, str(path.parent.resolve()) if path.suffix == ".py" else str(Path.cwd()))
    try:
        names = (
            runpy.run_path(module, run_name="flows") if path.suffix == ".py" else vars(importlib.import_module(module))
        )
    except (ImportError, OSError) as error:
        msg = f"The program {module[:200]} cannot be imported: {error}"
        raise Usage(msg, hint="Name a module, such as myapp.flows, or a file, such as flows.py.") from error
    found: dict[int, Flow] = {id(value): value for value in names.values() if isinstance(value, Flow)}
    flows = list(found.values())
    if not flows:
        msg = f"The program {module[:200]} defines no flow."
        raise Usage(msg, hint="Decorate a function with @flow(database=...) from kneo.sdk.durable.")
    known: set[str] = set()
    for each in flows:
        if each.name in known:
            msg = f"The program {module[:200]} defines two flows named {each.name[:200]}."
            raise Usage(msg, hint="Give one of them another name: @flow(name=...).")
        known.add(each.name)
        if each.database is None:
            msg = f"The flow {each.name[:200]} has no database, so its executions end with the program."
            raise Usage(msg, hint="Pass database=SqliteDb('flows.db') or PostgresDb(...) to @flow.")
    return flows


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
