"""``kneo task stats``: review statistics of gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from kneo.api.tasks import TaskStatsView, get_human_task_stats
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions
from kneo.tasks.review import GateStatistics

BAR = 16
"""Characters of a bar."""

PARTS = (("approved", "█"), ("selected", "█"), ("provided", "█"), ("edited", "▒"), ("rejected", "░"))

_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "m"))


@examples("kneo task stats", "kneo task stats --env prod --since 7d --json")
def stats(
    since: Annotated[str, typer.Option("--since", help="Period in which the tasks were opened: 30d, 12h, …")] = "30d",
    environment: Annotated[
        str | None, typer.Option("--env", "--environment", help="Only gates of this environment.")
    ] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only gates of this workflow.")] = None,
    *,
    options: ServiceOptions,
) -> None:
    """Show review statistics for each gate: response times, edits, rejections, agreement.

    A gate is marked where most decisions approve the subject unchanged, in less time than reading it takes.
    """
    with options.open() as opened:
        view = opened.call(get_human_task_stats, since=since, environment=environment, workflow_name=workflow)
    render.emit(view, as_json=options.as_json, text=lambda: _show(view))


def _show(view: TaskStatsView) -> None:
    if not view.gates:
        render.text("No decisions in this period.")
        return
    columns = ["Gate", "Decisions", "█ as shown ▒ edited ░ rejected", "Median", "90 %", "Changed", "Agreed"]
    render.table(f"Since {view.since}", columns, [_row(gate) for gate in view.gates])
    for gate in view.gates:
        if gate.rubber_stamp:
            quick = f"{gate.quick_share:.0%} of approvals came before the subject could have been read"
            hint = "Ask less often (sample, when), show less, or require two people."
            render.warning(f"{_name(gate)} looks like a rubber stamp: {quick}.", hint)
    if view.truncated:
        render.warning(f"The statistics cover the newest {view.tasks} tasks only; there are more in this period.")


def _row(gate: GateStatistics) -> list[object]:
    undecided = [
        f"{count} {word}" for count, word in ((gate.by_deadline, "by deadline"), (gate.expired, "expired")) if count
    ]
    return [
        _name(gate),
        f"{gate.by_people}" + (f" (+ {', '.join(undecided)})" if undecided else ""),
        bar(gate.decisions),
        duration(gate.median_seconds),
        duration(gate.p90_seconds),
        _percent(gate.edit_distance),
        _percent(gate.agreement),
    ]


def _name(gate: GateStatistics) -> str:
    return "/".join(place for place in (gate.environment, gate.workflow_name, gate.gate) if place is not None)


def bar(decisions: Mapping[str, int]) -> str:
    """Draw decisions as one line, each as long as its share; every decision shows."""
    whole = sum(decisions.values())
    if not whole:
        return ""
    marks: dict[str, int] = {}
    for word, mark in PARTS:
        marks[mark] = marks.get(mark, 0) + decisions.get(word, 0)
    lengths = {mark: max(1, round(BAR * count / whole)) if count else 0 for mark, count in marks.items()}
    longest = max(lengths, key=lambda mark: lengths[mark])
    lengths[longest] += BAR - sum(lengths.values())
    return "".join(mark * length for mark, length in lengths.items())


def duration(seconds: float | None) -> str:
    """Return seconds as text: ``40 s``, ``1.5 h``."""
    if seconds is None:
        return ""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _percent(share: float | None) -> str:
    return f"{share:.0%}" if share is not None else ""
