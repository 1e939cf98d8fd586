"""``kneo runs``: what ran, what runs, what happened in it."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend

app = typer.Typer(help="Look at runs.", no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(metavar="RUN_ID")]


@app.command("list")
def list_runs(
    status: Annotated[str | None, typer.Option("--status", help="Only runs with this status.")] = None,
    environment: Annotated[str | None, typer.Option("--env", help="Only runs of this environment.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, the most recently changed first."""
    with backend(service_url, profile) as asked:
        answer = asked.runs({"status": status, "environment": environment, "limit": limit})
    render.emit(answer, as_json=as_json, text=lambda: _show_list(answer))


def _show_list(answer: Json) -> None:
    items = answer["runs"]
    assert isinstance(items, list)
    if not items:
        render.text("No runs.")
        return
    rows = []
    for item in items:
        release = item["metadata"].get("release") or {}
        what = f"{release['bundle']}@{release['version']}" if release else item["workflow_name"]
        rows.append([item["run_id"], item["status"], what, release.get("environment"), item["updated_at"]])
    render.table("", ["Run", "Status", "What", "Environment", "Changed"], rows)


@app.command("get")
def get(
    run_id: RunArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one run."""
    with backend(service_url, profile) as asked:
        answer = asked.run(run_id)
    render.emit(answer, as_json=as_json, text=lambda: _show_run(answer))


def _show_run(answer: Json) -> None:
    visited = answer["visited_steps"]
    assert isinstance(visited, list)
    lines = [
        ("Status", f"{answer['status']}"),
        ("Workflow", f"{answer['workflow_name']}"),
        ("Agent", f"{answer['agent_name']}"),
        ("Steps", f"{' → '.join(visited) or '-'}"),
        ("Output", f"{answer['output_text'] if answer['output_text'] is not None else '-'}"),
    ]
    error = answer["error"]
    if isinstance(error, dict):
        lines.append(("Error", f"{error['type']}: {error['message']}"))
    if answer["continuation_id"]:
        lines.append(("Waits", f"{answer['continuation_id']}"))
    render.panel(f"Run {answer['run_id']}", lines)


@app.command("trace")
def trace(
    run_id: RunArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what happened in a run, step by step."""
    with backend(service_url, profile) as asked:
        answer = asked.trace(run_id)
    events = answer["events"]
    assert isinstance(events, list)
    rows = [
        [number, event["type"], event["step_id"], event["output_preview"] or event["input_preview"], event["timestamp"]]
        for number, event in enumerate(events, start=1)
    ]
    render.emit(
        {"run_id": run_id, "events": events},
        as_json=as_json,
        text=lambda: render.table("Trace Events", ["#", "Type", "Step", "Preview", "At"], rows),
    )


@app.command("checkpoints")
def checkpoints(
    run_id: RunArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the durable points of a run."""
    with backend(service_url, profile) as asked:
        answer = asked.checkpoints(run_id)
    items = answer["checkpoints"]
    assert isinstance(items, list)
    rows = [[item["sequence"], item["type"], item["step_id"], item["created_at"]] for item in items]
    render.emit(
        {"run_id": run_id, "checkpoints": items},
        as_json=as_json,
        text=lambda: render.table("Checkpoints", ["#", "Type", "Step", "At"], rows),
    )


@app.command("cancel")
def cancel(
    run_id: RunArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a run now and withdraw what it asked."""
    with backend(service_url, profile) as asked:
        answer = asked.cancel(run_id)
    render.emit(answer, as_json=as_json, text=lambda: _show_run(answer))
