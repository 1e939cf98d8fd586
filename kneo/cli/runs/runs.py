"""``kneo runs``: list, inspect and follow runs, their steps and what their agents wrote."""

from __future__ import annotations

from typing import Annotated

import typer

from kneo.api.run_conversation import ConversationsView, get_run_conversation, get_tool_result
from kneo.api.run_steps import StepPageView, StepView, list_run_steps
from kneo.api.run_views import RunPageView, RunView
from kneo.api.runs import get_run, get_run_trace, list_run_checkpoints
from kneo.api.runs import list_runs as list_runs_
from kneo.api.status_words import check_status
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import Json, ProfileOption, ServiceOptions, ServiceUrlOption, backend
from kneo.cli.options import Period
from kneo.cli.runs.run import dollars
from kneo.cli.watch import details, indent, show_event

app = typer.Typer(no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(metavar="RUN_ID", help="ID of a run, as kneo runs list shows it.")]


@app.command("list")
@examples("kneo runs list --env prod --failed", "kneo runs list --search invoice --since 90d")
def list_runs(
    status: Annotated[
        str | None, typer.Option("--status", help="Only runs with this status, or with one of several: paused,failed.")
    ] = None,
    environment: Annotated[str | None, typer.Option("--env", help="Only runs of this environment.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only runs of this workflow.")] = None,
    requester: Annotated[str | None, typer.Option("--requester", help="Only runs that this person started.")] = None,
    waiting_for: Annotated[
        str | None, typer.Option("--waiting-for", help="Only runs with a task that this person may decide; or me.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", help="Only runs of this conversation (session ID).")
    ] = None,
    failed: Annotated[
        bool | None,
        typer.Option("--failed/--fine", help="Only runs with an error, or without one.", show_default=False),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--search", help="Only runs of the last 30 days with this text in their input or output."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Number of runs to show.")] = 20,
    offset: Annotated[int, typer.Option("--offset", min=0, max=10_000, help="Number of runs to skip.")] = 0,
    *,
    period: Period,
    options: ServiceOptions,
) -> None:
    """List runs, most recently changed first."""
    for word in status.split(",") if status is not None else ():
        check_status(word.strip())
    with options.open() as opened:
        page = opened.call(
            list_runs_,
            status=status,
            environment=environment,
            workflow_name=workflow,
            requester=requester,
            waiting_for=waiting_for,
            session_id=session,
            has_error=failed,
            created_after=period.created_after,
            created_before=period.created_before,
            q=text,
            limit=limit,
            offset=offset,
        )
    render.emit(page, as_json=options.as_json, text=lambda: _show_list(page, period))


def _show_list(page: RunPageView, period: Period) -> None:
    period.show(page.searched)
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
    end = page.offset + len(page.runs)
    if end < page.total:
        render.text(f"{len(page.runs)} of {page.total}. Next page: --offset {end}")


@app.command("get")
@examples("kneo runs get run_01JD8Z4V6M3Q", "kneo runs get run_01JD8Z4V6M3Q --json")
def get(run_id: RunArgument, *, options: ServiceOptions) -> None:
    """Show one run."""
    with options.open() as opened:
        run = opened.call(get_run, run_id)
    render.emit(run, as_json=options.as_json, text=lambda: show_run(run))


def show_run(run: RunView) -> None:
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
@examples("kneo runs watch run_01JD8Z4V6M3Q", "kneo runs watch run_01JD8Z4V6M3Q --until-pause --json")
def watch(
    run_id: RunArgument,
    until_pause: Annotated[bool, typer.Option("--until-pause", help="Stop when the run pauses.")] = False,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
) -> None:
    """Follow a run until it ends; exit 1 if it fails."""
    last: Json = {}
    with backend(service_url, profile) as opened:
        for event in opened.follow(run_id, until_pause=until_pause):
            if as_json:
                render.print_line(event)
            else:
                show_event(event)
            last = event
    if last.get("status") == "failed":
        raise typer.Exit(1)


@app.command("trace")
@examples("kneo runs trace run_01JD8Z4V6M3Q", "kneo runs trace run_01JD8Z4V6M3Q --json")
def trace(run_id: RunArgument, *, options: ServiceOptions) -> None:
    """Show the events of a run, step by step."""
    with options.open() as opened:
        events = opened.call(get_run_trace, run_id, limit=1000).events
    rows = [
        [number, f"{indent(event.type)}{event.type}", event.step_id, details(vars(event)), event.timestamp]
        for number, event in enumerate(events, start=1)
    ]
    render.emit(
        {"run_id": run_id, "events": events},
        as_json=options.as_json,
        text=lambda: render.table("Trace Events", ["#", "Type", "Step", "Details", "At"], rows),
    )


@app.command("checkpoints")
@examples("kneo runs checkpoints run_01JD8Z4V6M3Q", "kneo runs checkpoints run_01JD8Z4V6M3Q --json")
def checkpoints(run_id: RunArgument, *, options: ServiceOptions) -> None:
    """List the checkpoints of a run."""
    with options.open() as opened:
        items = opened.call(list_run_checkpoints, run_id, limit=1000).checkpoints
    rows = [[item.sequence, item.type, item.step_id, item.created_at] for item in items]
    render.emit(
        {"run_id": run_id, "checkpoints": items},
        as_json=options.as_json,
        text=lambda: render.table("Checkpoints", ["#", "Type", "Step", "At"], rows),
    )


@examples("kneo runs steps run_01JD8Z4V6M3Q", "kneo runs steps run_01JD8Z4V6M3Q --json")
def steps(
    run_id: RunArgument,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Number of steps to show.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, max=10_000, help="Number of steps to skip.")] = 0,
    *,
    options: ServiceOptions,
) -> None:
    """List the steps of a run with their models, tokens and cost."""
    with options.open() as opened:
        page = opened.call(list_run_steps, run_id, limit=limit, offset=offset)
    render.emit(page, as_json=options.as_json, text=lambda: _show_steps(page))


def _show_steps(page: StepPageView) -> None:
    if not page.steps and not page.gates:
        render.text("No steps.")
        return
    heads = ["Step", "Kind", "Attempt", "Status", "Model", "Requests", "Tool calls", "Tokens", "Cost", "Completed"]
    render.table("Steps", heads, [_row(step) for step in page.steps])
    if page.gates:
        gates = [
            [gate.path, gate.position, gate.decision or gate.status, gate.actor, gate.prompt, gate.resolved_at]
            for gate in page.gates
        ]
        render.table("Gates", ["Step", "Position", "Status", "Actor", "Prompt", "Resolved"], gates)
    shown = page.offset + len(page.steps)
    if shown < page.total:
        render.text(f"{len(page.steps)} of {page.total}. Next page: --offset {shown}")


def _row(step: StepView) -> list[object]:
    usage, model = step.usage, step.model
    counts: list[object] = [None] * 4
    if usage is not None:
        cost = dollars(usage.cost_micros) if usage.requests else None
        counts = [usage.requests, usage.tool_calls, usage.total_tokens, cost]
    name = f"{model.provider}/{model.name}" if model is not None else None
    return [step.path, step.kind, step.attempt, step.status, name, *counts, step.completed_at]


@examples("kneo runs conversation run_01JD8Z4V6M3Q", "kneo runs conversation run_01JD8Z4V6M3Q draft --json")
def conversation(
    run_id: RunArgument,
    step: Annotated[str | None, typer.Argument(metavar="STEP", help="Only this step, by its path.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Show personal data too; secrets are never shown.")] = False,
    *,
    options: ServiceOptions,
) -> None:
    """Show what the agents of a run and their models wrote."""
    with options.open() as opened:
        found = opened.call(get_run_conversation, run_id, step=step, whole=whole)
    render.emit(found, as_json=options.as_json, text=lambda: _show_conversations(found))


@examples("kneo runs result run_01JD8Z4V6M3Q call_1", "kneo runs result run_01JD8Z4V6M3Q 2.call_1 --json")
def result(
    run_id: RunArgument,
    call: Annotated[
        str, typer.Argument(metavar="CALL", help="ID of the call in the conversation, or its key in the trace.")
    ],
    conversation: Annotated[
        str | None, typer.Option("--conversation", help="The conversation, where several have such a call.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Show personal data too; secrets are never shown.")] = False,
    *,
    options: ServiceOptions,
) -> None:
    """Show the whole result of a tool call that the model was shown cut."""
    with options.open() as opened:
        found = opened.call(get_tool_result, run_id, call, conversation=conversation, whole=whole)
    render.emit(found, as_json=options.as_json, text=lambda: render.text(found.text))


def _show_conversations(found: ConversationsView) -> None:
    if not found.conversations:
        render.text("No conversations.")
    for one in found.conversations:
        render.text(f"{one.step} ({one.agent or 'agent'})")
        for message in one.messages:
            label = f"{message.role} {message.tool_name}" if message.tool_name else message.role
            if message.text:
                render.text(f"  {label}: {_indented(message.text)}")
            for call in message.tool_calls:
                render.text(f"  {label} calls {call.name} {_indented(call.arguments)}")
    if found.truncated:
        render.warning("The conversations are cut.", "Name a step: kneo runs conversation RUN_ID STEP")


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")
