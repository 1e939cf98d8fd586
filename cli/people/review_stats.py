"""``kneo human stats``: how people review, as figures and as a small picture."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend

BAR = 16
"""Characters of a bar."""

PARTS = (("approved", "█"), ("selected", "█"), ("provided", "█"), ("edited", "▒"), ("rejected", "░"))

_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "m"))


def stats(
    since: Annotated[str, typer.Option("--since", help="Questions asked in the last 30d, 12h, …")] = "30d",
    environment: Annotated[str | None, typer.Option("--environment", help="Only those of this one.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only those of this one.")] = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how people review, gate by gate: how fast, how often they change or refuse something, whether they agree.

    A gate is marked where nearly everything is approved as shown, and most of it before it could have been read.
    """
    query = {"since": since, "environment": environment, "workflow_name": workflow}
    with backend(service_url, profile) as asked:
        answer = asked.task_stats(query)
    render.emit(answer, as_json=as_json, text=lambda: _show(answer))


def _show(answer: Json) -> None:
    gates = answer["gates"]
    assert isinstance(gates, list)
    if not gates:
        render.text("Nothing was answered in that time.")
        return
    columns = ["Gate", "Answers", "█ as shown ▒ edited ░ rejected", "Median", "90 %", "Changed", "Agreed"]
    render.table(f"Since {answer['since']}", columns, [_row(gate) for gate in gates])
    for gate in gates:
        if gate["rubber_stamp"]:
            quick = f"{gate['quick_share']:.0%} of approvals came before what was shown could have been read"
            hint = "Ask less often (sample, when), show less, or ask two people."
            render.warning(f"{_name(gate)} looks like a rubber stamp: {quick}.", hint)
    if answer["truncated"]:
        render.warning(f"These are the newest {answer['tasks']} questions only; there are more in that time.")


def _row(gate: Json) -> list[object]:
    unanswered = [
        f"{gate[name]} {word}" for name, word in (("by_deadline", "by deadline"), ("expired", "expired")) if gate[name]
    ]
    answers = f"{gate['by_people']}" + (f" (+ {', '.join(unanswered)})" if unanswered else "")
    return [
        _name(gate),
        answers,
        bar(gate["decisions"]),
        duration(gate["median_seconds"]),
        duration(gate["p90_seconds"]),
        _percent(gate["edit_distance"]),
        _percent(gate["agreement"]),
    ]


def _name(gate: Json) -> str:
    places = (gate["environment"], gate["workflow_name"], gate["gate"])
    return "/".join(str(place) for place in places if place is not None)


def bar(decisions: object) -> str:
    """Draw what people said as one line, as long for each answer as its share; every answer shows."""
    assert isinstance(decisions, dict)
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


def duration(seconds: object) -> str:
    """Spell seconds for people: ``40 s``, ``1.5 h``."""
    if not isinstance(seconds, int | float):
        return ""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _percent(share: object) -> str:
    return f"{share:.0%}" if isinstance(share, int | float) else ""
