"""``kneo human``: the inbox."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.outcome import show_outcome
from kneo.errors import Usage

app = typer.Typer(help="Answer what runs ask people.", no_args_is_help=True)

ME = "me"
"""Whoever asks, in the words of the service."""

TaskArgument = Annotated[str, typer.Argument(metavar="CONTINUATION_ID")]


@app.command("list")
def list_tasks(
    run_id: Annotated[str | None, typer.Option("--run-id", help="Only tasks of this run.")] = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", help="pending, escalated, overdue, all, open, claimed, decided, …; left out: unanswered."
        ),
    ] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only what you may answer.")] = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what waits for people, the oldest first."""
    with backend(service_url, profile) as asked:
        answer = asked.tasks({"run_id": run_id, "status": status, "candidate": ME if mine else None})
    render.emit(answer, as_json=as_json, text=lambda: _show_list(answer))


def _show_list(answer: Json) -> None:
    items = answer["tasks"]
    assert isinstance(items, list)
    if not items:
        render.text("Nothing waits for a person.")
        return
    rows = [
        [item["continuation_id"], item["step_id"], item["request"]["prompt"], item["environment"], item["created_at"]]
        for item in items
    ]
    render.table("", ["Task", "Step", "Question", "Environment", "Since"], rows)


@app.command("get")
def get(
    continuation_id: TaskArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one question and what it is about."""
    with backend(service_url, profile) as asked:
        answer = asked.task(continuation_id)
    render.emit(answer, as_json=as_json, text=lambda: show_task(answer))


def show_task(task: Json) -> None:
    request = task["request"]
    assert isinstance(request, dict)
    lines = [
        ("Question", f"{request['prompt']}"),
        ("About", f"{request['context']['input_text']}"),
        ("Run", f"{task['run_id']} at {task['step_id']}"),
        ("Status", f"{task['status']}"),
        ("Request", f"{request['request_id']}"),
        ("Answers", f"{', '.join(request['decisions'])}"),
    ]
    if request["assignee"]:
        lines.append(("For", f"{request['assignee']}"))
    render.panel(f"Task {task['continuation_id']}", lines)


@app.command("resume")
def resume(
    continuation_id: TaskArgument,
    request_id: Annotated[str, typer.Option("--request-id", help="Which question you answer.")],
    approve: Annotated[bool, typer.Option("--approve", help="Let it go on.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="Stop it.")] = False,
    edit: Annotated[str | None, typer.Option("--edit", help="Go on with this text instead.")] = None,
    provide: Annotated[str | None, typer.Option("--provide", help="Answer with this text.")] = None,
    select: Annotated[str | None, typer.Option("--select", help="Choose one of the options.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, with --reject.")] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question; the run goes on from there."""
    given = {
        "approved": approve or None,
        "rejected": reject or None,
        "edited": edit,
        "provided": provide,
        "selected": select,
    }
    chosen = [decision for decision, value in given.items() if value is not None]
    if len(chosen) != 1:
        msg = "Say exactly one of --approve, --reject, --edit, --provide and --select."
        raise Usage(msg)
    answer: Json = {"request_id": request_id, "decision": chosen[0]}
    if chosen[0] == "selected":
        answer["selected_option"] = select
    elif chosen[0] in {"edited", "provided"}:
        answer["content"] = edit if edit is not None else provide
    elif reason is not None:
        answer["content"] = reason
    with backend(service_url, profile) as asked:
        result = asked.resume(continuation_id, answer)
    render.emit(result, as_json=as_json, text=lambda: show_outcome(result))
