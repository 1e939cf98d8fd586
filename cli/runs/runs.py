"""``kneo runs``: what ran, what runs, what happened in it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend
from cli.runs.outcome import show_outcome
from cli.watch import show_event
from kneo.api.run_views import RunPageView, RunView
from kneo.api.runs import cancel_run, get_run, get_run_trace, list_run_checkpoints
from kneo.api.runs import list_runs as list_runs_
from kneo.api.status_words import check_status
from kneo.errors import Usage

app = typer.Typer(no_args_is_help=True)

AnswersOption = Annotated[
    list[str] | None,
    typer.Option("--answer", metavar="KEY=JSON", help="Answer this question so, as far as you may. May be repeated."),
]
AskOption = Annotated[
    list[str] | None, typer.Option("--ask", metavar="KEY", help="Ask this question anew; all asks every one.")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN_ID")]


@app.command("list")
def list_runs(
    status: Annotated[str | None, typer.Option("--status", help="Only runs with this status.")] = None,
    environment: Annotated[str | None, typer.Option("--env", help="Only runs of this environment.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only runs of this workflow.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Only runs of this conversation.")] = None,
    failed: Annotated[
        bool | None,
        typer.Option("--failed/--fine", help="Only runs with an error, or without one.", show_default=False),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--search", help="Only runs with this in what went in or came out.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    offset: Annotated[int, typer.Option("--offset", min=0, max=10_000, help="Leave out the first so many.")] = 0,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, the most recently changed first."""
    if status is not None:
        check_status(status)
    with backend(service_url, profile) as asked:
        page = asked.call(
            list_runs_,
            status=status,
            environment=environment,
            workflow_name=workflow,
            session_id=session,
            has_error=failed,
            q=text,
            limit=limit,
            offset=offset,
        )
    render.emit(page, as_json=as_json, text=lambda: _show_list(page))


def _show_list(page: RunPageView) -> None:
    if not page.runs:
        render.text("No runs.")
        return
    rows = []
    for run in page.runs:
        release = run.metadata.get("release")
        release = release if isinstance(release, dict) else {}
        what = f"{release['bundle']}@{release['version']}" if release else run.workflow_name
        rows.append([run.run_id, run.status, what, release.get("environment"), run.updated_at])
    render.table("", ["Run", "Status", "Bundle or workflow", "Environment", "Updated"], rows)
    shown = page.offset + len(page.runs)
    if shown < page.total:
        render.text(f"{len(page.runs)} of {page.total}. Next page: --offset {shown}")


@app.command("get")
def get(
    run_id: RunArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one run."""
    with backend(service_url, profile) as asked:
        run = asked.call(get_run, run_id)
    render.emit(run, as_json=as_json, text=lambda: _show_run(run))


def _show_run(run: RunView) -> None:
    lines = [
        ("Status", run.status),
        ("Workflow", run.workflow_name),
        ("Agent", run.agent_name),
        ("Steps", " → ".join(run.visited_steps) or "-"),
        ("Output", run.output_text if run.output_text is not None else "-"),
    ]
    if run.error is not None:
        lines.append(("Error", f"{run.error.type}: {run.error.message}"))
    if run.continuation_id is not None:
        lines.append(("Waits for", run.continuation_id))
    render.panel(f"Run {run.run_id}", lines)


@app.command("watch")
def watch(
    run_id: RunArgument,
    until_pause: Annotated[bool, typer.Option("--until-pause", help="Stop when it waits for a person.")] = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each event.")] = False,
) -> None:
    """Show what happens in a run while it happens, until it ends; exit 1 when it fails."""
    last: Json = {}
    with backend(service_url, profile) as asked:
        for event in asked.follow(run_id, until_pause=until_pause):
            if as_json:
                render.print_line(event)
            else:
                show_event(event)
            last = event
    if last.get("status") == "failed":
        raise typer.Exit(1)


@app.command("trace")
def trace(
    run_id: RunArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what happened in a run, step by step."""
    with backend(service_url, profile) as asked:
        events = asked.call(get_run_trace, run_id, limit=1000).events
    rows = [
        [number, event.type, event.step_id, event.output_preview or event.input_preview, event.timestamp]
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
        items = asked.call(list_run_checkpoints, run_id, limit=1000).checkpoints
    rows = [[item.sequence, item.type, item.step_id, item.created_at] for item in items]
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
        run = asked.call(cancel_run, run_id)
    render.emit(run, as_json=as_json, text=lambda: _show_run(run))


@app.command("replay")
def replay(
    run_id: RunArgument,
    step: Annotated[str | None, typer.Option("--from", help="Start another run at this step instead.")] = None,
    text: Annotated[str | None, typer.Option("--input", help="With --from: what the step is given instead.")] = None,
    answers: AnswersOption = None,
    ask: AskOption = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run's checkpoints as a timeline; with --from, run it again from there."""
    if step is not None:
        fork(run_id, step, None, text, answers, ask, service_url, profile, as_json)
        return
    if text is not None or answers or ask:
        msg = "--input, --answer and --ask need --from."
        raise Usage(msg, hint="kneo runs replay RUN --from STEP --input TEXT")
    with backend(service_url, profile) as asked:
        answer = asked.past(run_id, "replay")
    items = answer["timeline"]
    assert isinstance(items, list)
    rows = [[item["sequence"], item["type"], item["step_id"], item["status"], item["created_at"]] for item in items]
    render.emit(
        answer,
        as_json=as_json,
        text=lambda: render.table("Timeline", ["#", "Type", "Step", "Status", "At"], rows),
    )


@app.command("recovery")
def recovery(
    run_id: RunArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where a run stands and whether it can be continued."""
    with backend(service_url, profile) as asked:
        answer = asked.past(run_id, "recovery")
    context = answer["replay_context"]
    assert isinstance(context, dict)
    lines = [
        ("Status", f"{answer['status']}"),
        ("Done", ", ".join(context["completed_steps"]) or "nothing"),
        ("Failed", f"{context['failed_step'] or 'nothing'}"),
        ("Continue", f"kneo runs continue {run_id}" if context["can_continue"] else "no"),
    ]
    render.emit(answer, as_json=as_json, text=lambda: render.panel(f"Run {run_id}", lines))


@app.command("continue")
def continue_(
    run_id: RunArgument,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try a failed run again; what had succeeded is not repeated."""
    with backend(service_url, profile) as asked:
        answer = asked.continue_run(run_id)
    _finish(answer, as_json=as_json)


@app.command("fork")
def fork(
    run_id: RunArgument,
    step: Annotated[str | None, typer.Option("--from", help="The step to begin with, such as review/legal#2.")] = None,
    checkpoint: Annotated[int | None, typer.Option("--checkpoint", help="Or the number of a checkpoint.")] = None,
    text: Annotated[str | None, typer.Option("--input", "-i", help="What the step is given instead.")] = None,
    answers: AnswersOption = None,
    ask: AskOption = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start another run from a point in this one's past. What people answered there is not asked again."""
    if (step is None) == (checkpoint is None):
        msg = "Name a step or a checkpoint to begin at, one of them."
        raise Usage(msg, hint="kneo runs fork RUN --from STEP")
    order: Json = {
        "step": step,
        "checkpoint": checkpoint,
        "input": text,
        "answers": dict(map(_answer, answers)) if answers else None,
        "ask": ask or None,
    }
    with backend(service_url, profile) as asked:
        answer = asked.fork(run_id, {name: value for name, value in order.items() if value is not None})
        used = asked.past(str(answer["run_id"]), "replay")["answers"]
    assert isinstance(used, list)
    if used and not as_json:
        rows = [[item["key"], "used again" if item["reused"] else "not used", item["reason"]] for item in used]
        render.table("Answers", ["Question", "The answer was", "Because"], rows)
    _finish({**answer, "answers": used}, as_json=as_json)


def _answer(written: str) -> tuple[str, object]:
    key, sign, value = written.partition("=")
    if not sign or not key:
        msg = f"--answer {written[:80]!r} is not KEY=JSON."
        raise Usage(msg, hint='--answer \'approve.step={"decision": "edited", "content": "better"}\'')
    return key, _json(value)


def _finish(answer: Json, *, as_json: bool) -> None:
    render.emit(answer, as_json=as_json, text=lambda: show_outcome(answer))
    if answer["status"] == "failed":
        raise typer.Exit(1)


@app.command("input")
def give_input(
    run_id: RunArgument,
    value: Annotated[
        str | None, typer.Option("--value", help="The value, as JSON; what is not JSON is a text.")
    ] = None,
    abort: Annotated[bool, typer.Option("--abort", help="Give none: what it was for does not happen.")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", help="Ask for it at the terminal.")] = False,
    key: Annotated[str | None, typer.Option("--key", help="Which question, where the run asks several.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, with --abort.")] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer what a run waits for with a value."""
    if sum((value is not None, abort, interactive)) != 1:
        msg = "Say exactly one of --value, --abort and --interactive."
        raise Usage(msg)
    if interactive:
        value = typer.prompt("Value")
    body: Json = {"abort": True, "reason": reason} if abort else {"value": _json(value or "")}
    if key is not None:
        body["key"] = key
    with backend(service_url, profile) as asked:
        answer = asked.run_input(run_id, body)
    _finish(answer, as_json=as_json)


def _json(text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value


@app.command("checkpoint-diff")
def checkpoint_diff(
    run_id: RunArgument,
    before: Annotated[int | None, typer.Option("--from-sequence", min=1)] = None,
    after: Annotated[int | None, typer.Option("--to-sequence", min=1)] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what changed between two checkpoints; left out: the last two."""
    with backend(service_url, profile) as asked:
        answer = asked.checkpoint_diff(run_id, before, after)
    render.emit(answer, as_json=as_json, text=lambda: _show_changes(answer))


def _show_changes(answer: Json) -> None:
    rows = []
    for sign, name in (("+", "added"), ("-", "removed"), ("~", "changed")):
        items = answer[name]
        assert isinstance(items, list)
        for item in items:
            told = item["value"] if "value" in item else f"{item['before']} → {item['after']}"
            rows.append([sign, item["path"], f"{told}"[:120]])
    render.table(f"{answer['change_count']} changes", ["", "Path", "Value"], rows)
