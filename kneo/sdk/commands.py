"""``kneo sdk serve``: a process that continues the flows of a program."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.serve.worker import logged_settings, until_stopped
from kneo.errors import Usage
from kneo.sdk.durable import Flow
from kneo.sdk.durable.serving import FlowServer

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
