"""``kneo spec simulate``: the branches of a workflow, without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.files import read_bytes
from kneo.cli.options import JsonOption
from kneo.cli.specs.check import Checked, check, require_usable
from kneo.cli.specs.spec import EnvOption, SpecArgument
from kneo.names import visible
from kneo.runtime.simulate.exploration import BranchOutcome
from kneo.runtime.simulate.report import MAX_ROWS, MAX_STATES, Simulation, Simulator
from kneo.spec.coverage.calls import call_coverage, call_words, denied_calls
from kneo.spec.coverage.policy import GuardrailPlace, guardrail_places
from kneo.spec.documents import DEFAULT_LIMITS
from kneo.spec.index import SpecIndex
from kneo.spec.models.answers import AnswersFile
from kneo.spec.models.environment import QuestionPolicy
from kneo.spec.policy import NO_TOOL_RULES
from kneo.spec.reading.reader import read
from kneo.spec.reading.validate import parse_model

SHOWN_BY_ITSELF = "E_PRIVILEGED_UNGATED"
"""Not a reason to refuse: the simulation shows the decisions that lead there."""


@examples("kneo spec simulate spec.yaml", "kneo spec simulate spec.yaml --answers tests/refund.answers.yaml")
def simulate(
    spec: SpecArgument = None,
    *,
    answers: Annotated[
        list[Path] | None, typer.Option("--answers", help="A file of answers to simulate; can be repeated.")
    ] = None,
    env: EnvOption = None,
    rows: Annotated[int, typer.Option(min=0, help="The maximum number of branches to list.")] = MAX_ROWS,
    limit: Annotated[int, typer.Option(min=1, help="The maximum number of states to follow.")] = MAX_STATES,
    as_json: JsonOption = False,
) -> None:
    """Simulate every branch of a workflow without executing it.

    Exit status 1 if a step or gate is on no branch, if a privileged call needs no approval, or if an answers file
    does not fit or its expectations are not met.
    """
    checked = check(spec, env)
    tolerated = tuple(found for found in checked.findings if found.code != SHOWN_BY_ITSELF)
    require_usable(replace(checked, findings=tolerated), as_json=as_json)
    scripts = [(checked.project.shown(path), _read(path)) for path in answers or ()]
    declared = checked.file.declared
    least = declared.spec.questions if declared else QuestionPolicy()
    simulator = Simulator.of(checked.gated(), least=least, limit=limit, rows=rows)
    everything = simulator.everything()
    scenarios = [simulator.following(name, written) for name, written in scripts]
    index, tools = SpecIndex.of(checked.gated()), declared.spec.tools if declared else NO_TOOL_RULES
    places = list(guardrail_places(index))
    calls = [{**call.as_json(), "denied": denied_calls(index, call, tools)} for call in call_coverage(index, tools)]
    findings = [finding for simulation in (everything, *scenarios) for finding in simulation.findings]
    answer = {
        "ok": not findings,
        **checked.origin(),
        **{key: value for key, value in everything.as_json().items() if key not in {"file", "findings"}},
        "scenarios": [scenario.as_json() for scenario in scenarios],
        "guardrails": [place.as_json() for place in places],
        "calls": calls,
        "findings": [finding.as_json() for finding in findings],
    }

    def show() -> None:
        for simulation in scenarios or [everything]:
            _matrix(checked, simulation)
        if places:
            _guardrails(places)
        if calls:
            _calls(calls)
        for finding in findings:
            render.line(render.FAILED, visible(f"{finding.file or checked.name}: {finding.message} ({finding.code})"))
        if not findings:
            branches = f"{everything.branches} branches" if everything.branches != 1 else "1 branch"
            render.success(f"{visible(checked.name)}: {branches}; every step and gate is on at least one of them.")

    render.emit(answer, as_json=as_json, text=show)
    raise typer.Exit(1 if findings else 0)


def _read(path: Path) -> AnswersFile:
    data = read_bytes(path, max_bytes=DEFAULT_LIMITS.max_bytes, what="file of answers")
    return parse_model(AnswersFile, read(data, file=str(path)))


def _matrix(checked: Checked, simulation: Simulation) -> None:
    render.text(visible(simulation.file or checked.name))
    for number, outcome in enumerate(simulation.outcomes, 1):
        choices = [f"{name}: {' | '.join(words)}" for _, name, words in outcome.choices] or ["no decisions"]
        lines = [*choices, f"→ {' → '.join((*outcome.ran, _end(outcome)))}"]
        for at, line in enumerate(lines):
            render.text(f"{number if at == 0 else '':>3}  {visible(line)}")
    left = simulation.branches - len(simulation.outcomes)
    if left:
        render.warning(f"{left} of {simulation.branches} branches are not shown; --rows shows more.")
    if simulation.cut:
        rest = f"{simulation.cut} states were not followed"
        render.warning(f"{rest}; there are at least {simulation.branches} branches. --limit follows more.")


def _calls(calls: Sequence[Mapping[str, object]]) -> None:
    render.text("Privileged calls")
    for call in calls:
        denied = call["denied"]
        refused = f"; denied when {' or '.join(denied)}" if isinstance(denied, list) and denied else ""
        render.text(f"     {visible(call_words(call) + refused)}")


def _guardrails(places: Sequence[GuardrailPlace]) -> None:
    render.text("Guardrails")
    for place in places:
        found = [*place.steps, *(f"tool {name}" for name in place.tools)]
        kind, action = place.guardrail.type, place.guardrail.action
        where = f" at {', '.join(found)}" if found else ""
        line = f"{place.stage}: {place.guardrail.id} ({kind}, {action}) of {place.agent}{where}"
        render.text(f"     {visible(line)}")


def _end(outcome: BranchOutcome) -> str:
    if outcome.status is None:
        return "not followed"
    return f"{outcome.status} ({outcome.error})" if outcome.error else outcome.status
