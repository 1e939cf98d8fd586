"""``kneo audit``: the log, and the proof that nobody edited it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cli import render
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.status import show_events
from kneo.clock import SystemClock
from kneo.settings import from_env
from kneo.store import audit
from kneo.store.migrate import open_store

app = typer.Typer(help="Read and check the audit log.", no_args_is_help=True)


@app.command("list")
def list_events(
    event_type: Annotated[str | None, typer.Option("--type", help="Only events of this type.")] = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Only events of this run.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 50,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List audit events, newest first."""
    with backend(service_url, profile) as asked:
        answer = asked.audit_events({"event_type": event_type, "run_id": run_id, "limit": limit})
    render.emit(answer, as_json=as_json, text=lambda: show_events(answer))


@app.command("verify")
def verify(as_json: JsonOption = False) -> None:
    """Walk the whole chain of the database beside us; exit 3 when an event is not what was recorded."""
    store = open_store(from_env().database_url, SystemClock())
    audit.seal(store)
    verdict = audit.verify(store)
    store.close()

    def show() -> None:
        if verdict.valid:
            render.success(f"{verdict.size} events, unbroken. Head: {verdict.head}")
        else:
            render.failure(
                f"The audit log was changed: {verdict.problem}.",
                f"Everything before number {verdict.broken_at} is as it was recorded." if verdict.broken_at else None,
            )

    render.emit(asdict(verdict), as_json=as_json, text=show)
    if not verdict.valid:
        raise typer.Exit(3)
