"""``kneo usage``, and the last line of a run: requests, tool calls, tokens and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import typer

from kneo.api.usage import ModelUsageView, UsageReportView, get_usage
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions
from kneo.errors import Usage

MICROS = 1_000_000

GROUPS = ("day", "model", "agent")


@examples("kneo usage", "kneo usage --by model --env prod --since 2026-01-01 --json")
def usage(
    by: Annotated[str, typer.Option("--by", help="Sum up by day, model or agent.")] = "day",
    environment: Annotated[str | None, typer.Option("--env", help="Only usage of this environment.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="First day (UTC); by default 30 days ago.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Last day (UTC); by default today.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Sum up requests to models, their tokens and their cost."""
    if by not in GROUPS:
        msg = f"--by is day, model or agent, not {by[:40]!r}."
        raise Usage(msg)
    group = cast("Literal['day', 'model', 'agent']", by)
    with options.open() as opened:
        report = opened.call(get_usage, environment=environment, by=group, since=since, until=until)
    render.emit(report, as_json=options.as_json, text=lambda: _show(report))


def _show(report: UsageReportView) -> None:
    if not report.usage:
        render.text(f"No usage from {report.since} to {report.until}.")
        return
    rows = [[_name(row), *_cells(row)] for row in report.usage]
    rows.append(["Total", *_cells(report.total)])
    heads = [report.by.capitalize(), "Requests", "Input tokens", "Output tokens", "Cost"]
    render.table(f"Usage from {report.since} to {report.until}", heads, rows)
    if report.total.unpriced_requests:
        render.warning(f"{plural(report.total.unpriced_requests, 'request')} went to models without a known price.")
    if report.truncated:
        render.warning(f"The first {report.count} rows are shown.", "Narrow the days with --since and --until.")


def _name(row: ModelUsageView) -> str:
    return row.day or row.agent or f"{row.provider}/{row.model}"


def _cells(row: ModelUsageView) -> list[object]:
    return [row.requests, row.input_tokens, row.output_tokens, dollars(row.cost_micros)]


def show_usage(counts: object) -> None:
    """Print the usage of a run as one line on standard error; nothing for a run that used no model and no tool."""
    if isinstance(counts, Mapping):
        render.text(usage_line(counts), err=True)


def usage_line(counts: Mapping[str, object]) -> str:
    """Return the usage of a run: ``2 requests, 3 tool calls, 1204 tokens, $0.0031``."""
    micros = counts.get("cost_micros")
    parts = [
        plural(_number(counts, "requests"), "request"),
        plural(_number(counts, "tool_calls"), "tool call"),
        plural(_number(counts, "total_tokens"), "token"),
        dollars(micros if isinstance(micros, int) else None),
    ]
    unpriced = _number(counts, "unpriced_requests")
    if unpriced and micros is not None:
        parts.append(f"{plural(unpriced, 'request')} without a known price")
    return ", ".join(parts)


def dollars(micros: int | None) -> str:
    """Return a cost in dollars; ``price unknown`` where no request has a price."""
    if micros is None:
        return "price unknown"
    return f"${micros / MICROS:.{4 if micros == 0 or micros >= 100 else 6}f}"


def plural(number: int, noun: str) -> str:
    """Return a number of things: ``1 request``, ``2 requests``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(counts: Mapping[str, object], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else 0
