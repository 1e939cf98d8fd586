"""``kneo runs`` and ``kneo usage``: list, inspect and follow runs, and sum up what they used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from kneo.api.run_views import CheckpointPageView, RunPageView, RunView, TraceView
from kneo.api.runs import get_run_trace, list_run_checkpoints, parse_statuses
from kneo.api.runs import list_runs as list_runs_
from kneo.api.usage import ModelUsageView, UsageReportView, get_usage
from kneo.cli import render
from kneo.cli.backend import Json
from kneo.cli.commands import examples
from kneo.cli.connection import ProfileOption, ServiceOptions, ServiceUrlOption, backend
from kneo.cli.options import Period
from kneo.cli.watch import details, indent, show_event
from kneo.clock import SystemClock
from kneo.records.run import dollars
from kneo.service.published import own_words
from kneo.store.usage import UsageGroup

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
    if status is not None:
        status = own_words(status)
        parse_statuses(status)
    options.show(
        list_runs_,
        lambda page: _show_list(page, period),
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


def _show_list(page: RunPageView, period: Period) -> None:
    period.show(page.searched)
    if not page.runs:
        render.text("No runs.")
        return
    rows = []
    now = SystemClock().now()
    for run in page.runs:
        release = run.metadata.get("release")
        release = release if isinstance(release, dict) else {}
        what = f"{release['bundle']}@{release['version']}" if release else run.workflow_name
        rows.append([run.run_id, run.status, what, release.get("environment"), render.relative(run.updated_at, now)])
    render.table("", ["Run", "Status", "Bundle or workflow", "Environment", "Updated"], rows)
    end = page.offset + len(page.runs)
    if end < page.total:
        render.text(f"{len(page.runs)} of {page.total}. Next page: --offset {end}")


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
        page = opened.call(get_run_trace, run_id, limit=MAX_LISTED)
    events = page.events
    rows = [
        [number, f"{indent(event.type)}{event.type}", event.step_id, details(vars(event)), event.timestamp]
        for number, event in enumerate(events, start=1)
    ]
    _warn_if_cut(page, "trace")
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
        page = opened.call(list_run_checkpoints, run_id, limit=MAX_LISTED)
    items = page.checkpoints
    _warn_if_cut(page, "checkpoints")
    rows = [[item.sequence, item.type, item.step_id, item.created_at] for item in items]
    render.emit(
        {"run_id": run_id, "checkpoints": items},
        as_json=options.as_json,
        text=lambda: render.table("Checkpoints", ["#", "Type", "Step", "At"], rows),
    )


MAX_LISTED = 1_000
"""Events or checkpoints of one page, the most that an operation returns."""


def _warn_if_cut(page: TraceView | CheckpointPageView, part: str) -> None:
    if page.count < page.total:
        rest = f"The others: GET /v1/runs/{page.run_id}/{part}?offset={page.count}"
        render.warning(f"The first {page.count} of {page.total} are listed.", rest)


@examples("kneo usage", "kneo usage --by model --env prod --since 2026-01-01 --json")
def usage(
    by: Annotated[UsageGroup, typer.Option("--by", help="Sum up by day, model or agent.")] = "day",
    environment: Annotated[str | None, typer.Option("--env", help="Only usage of this environment.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="First day (UTC); by default 30 days ago.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Last day (UTC); by default today.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Sum up requests to models, their tokens and their cost."""
    options.show(get_usage, _show_usage_report, environment=environment, by=by, since=since, until=until)


def _show_usage_report(report: UsageReportView) -> None:
    if not report.usage:
        render.text(f"No usage from {report.since} to {report.until}.")
        return
    rows = [[row.group, *_usage_cells(row)] for row in report.usage]
    rows.append(["Total", *_usage_cells(report.total)])
    heads = [report.by.capitalize(), "Requests", "Input tokens", "Output tokens", "Cost"]
    render.table(f"Usage from {report.since} to {report.until}", heads, rows)
    if report.total.unpriced_requests:
        render.warning(
            f"{render.count(report.total.unpriced_requests, 'request')} went to models without a known price."
        )
    if report.truncated:
        render.warning(f"The first {report.count} rows are shown.", "Narrow the days with --since and --until.")


def _usage_cells(row: ModelUsageView) -> list[object]:
    return [row.requests, row.input_tokens, row.output_tokens, cost_of(row.cost_micros)]


def show_usage(counts: object) -> None:
    """Print the usage of a run as one line on standard error; nothing for a run that used no model and no tool."""
    if isinstance(counts, Mapping):
        render.text(usage_line(counts), err=True)


def usage_line(counts: Mapping[str, object]) -> str:
    """Return the usage of a run: ``2 requests, 3 tool calls, 1204 tokens, $0.0031``."""
    micros = counts.get("cost_micros")
    parts = [
        render.count(_number(counts, "requests"), "request"),
        render.count(_number(counts, "tool_calls"), "tool call"),
        render.count(_number(counts, "total_tokens"), "token"),
        cost_of(micros if isinstance(micros, int) else None),
    ]
    unpriced = _number(counts, "unpriced_requests")
    if unpriced and micros is not None:
        parts.append(f"{render.count(unpriced, 'request')} without a known price")
    return ", ".join(parts)


def cost_of(micros: int | None) -> str:
    """Return a cost in dollars; ``price unknown`` where no request has a price."""
    return dollars(micros) if micros is not None else "price unknown"


def _number(counts: Mapping[str, object], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else 0
