"""The command ``kneo doctor``."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import JsonOption
from kneo.cli.doctor.database import check_schema, database_checks
from kneo.cli.doctor.process import process_checks
from kneo.cli.doctor.report import Level, Result, run_checks, worst
from kneo.cli.doctor.report import as_json as report_as_json
from kneo.clock import Clock, SystemClock
from kneo.errors import Invalid
from kneo.settings import Settings, from_env
from kneo.store.migrate import open_store


@examples("kneo doctor", "kneo doctor --host 0.0.0.0 --processes 6 --json")
def doctor(
    host: Annotated[str, typer.Option("--host", help="Address that the API server listens at.")] = "127.0.0.1",
    processes: Annotated[
        int, typer.Option("--processes", min=1, max=10_000, help="Processes of Kneo that use the database.")
    ] = 1,
    as_json: JsonOption = False,
) -> int:
    """Check this installation: settings, database, keys, workers, repository.

    Run it with the settings of a service, worker or controller. Nothing is changed, and no secret is printed. The exit status
    is 1 where a check ended with an error.
    """
    results = examine(host, processes)
    render.emit(report_as_json(results), as_json=as_json, text=lambda: _show(results))
    return 1 if worst(results) is Level.ERROR else 0


def examine(host: str, processes: int, clock: Clock | None = None) -> tuple[Result, ...]:
    """Run all checks with the settings of this process."""
    clock = clock or SystemClock()
    try:
        settings = from_env()
    except Invalid as error:
        return (Result("settings", Level.ERROR, error.message, error.hint or "Correct the variable."),)
    results = run_checks(
        {
            **process_checks(settings, host),
            "database": lambda: check_schema(settings, clock),
        }
    )
    return results + _examine_database(settings, processes, clock, results[-1])


def _examine_database(settings: Settings, processes: int, clock: Clock, schema: Result) -> tuple[Result, ...]:
    """Run the checks of a database that this version can use as it is."""
    url = settings.database_url
    if schema.level is Level.ERROR or not (
        url.startswith("postgresql") or Path(url.removeprefix("sqlite:///")).exists()
    ):
        return ()
    try:
        with closing(open_store(settings.database_url, clock, migrates=False)) as store:
            return run_checks(database_checks(settings, store, processes))
    except Invalid:
        return ()  # Empty or to be migrated, as the check of the database reports.


MARKS = {Level.OK: render.DONE, Level.WARNING: render.CAREFUL, Level.ERROR: render.FAILED}


def _show(results: tuple[Result, ...]) -> None:
    for result in results:
        render.line(MARKS[result.level], f"{result.check}: {result.message}")
        if result.hint:
            render.text(f"    {result.hint}")
    counts = {level: sum(result.level is level for result in results) for level in Level}
    render.text(f"\n{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings, {counts[Level.OK]} ok")
