"""``kneo spec simulate``: every way a run can go, before any goes there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.files import read_bytes
from cli.project import open_project
from cli.specs.check import Checked, check, require_usable
from cli.specs.spec import EnvOption, JsonOption, SpecArgument
from kneo.runtime.simulate.exploration import BranchOutcome
from kneo.runtime.simulate.report import MAX_ROWS, MAX_STATES, Simulation, Simulator
from kneo.spec.documents import DEFAULT_LIMITS
from kneo.spec.models.answers import AnswersFile
from kneo.spec.reading.reader import read
from kneo.spec.reading.validate import parse_model

SHOWN_BY_ITSELF = "E_PRIVILEGED_UNGATED"
"""Not a reason to refuse: the simulation shows the decisions that lead there."""


def simulate(
    spec: SpecArgument = None,
    *,
    answers: Annotated[
        list[Path] | None, typer.Option("--answers", help="A file of answers to follow; may be given several times.")
    ] = None,
    env: EnvOption = None,
    rows: Annotated[int, typer.Option(min=0, help="The most branches that are listed of each walk.")] = MAX_ROWS,
    limit: Annotated[int, typer.Option(min=1, help="The most states that are followed in each walk.")] = MAX_STATES,
    as_json: JsonOption = False,
) -> None:
    """Walk every branch of a spec without running anything, and say how each ends.

    Exits 1 where a step or gate is on no branch, where something privileged is called though nobody has agreed to
    anything, and where an answers file does not fit or does not come to what it expects.
    """
    checked = check(open_project(env), spec)
    tolerated = tuple(found for found in checked.findings if found.code != SHOWN_BY_ITSELF)
    require_usable(replace(checked, findings=tolerated), as_json=as_json)
    scripts = [(checked.project.shown(path), _read(path)) for path in answers or ()]
    least = checked.project.questions_for(checked.file.path)
    simulator = Simulator.of(checked.gated(), least=least, limit=limit, rows=rows)
    everything = simulator.everything()
    scenarios = [simulator.following(name, written) for name, written in scripts]
    findings = [finding for simulation in (everything, *scenarios) for finding in simulation.findings]
    answer = {
        "ok": not findings,
        **checked.origin(),
        **{key: value for key, value in everything.as_json().items() if key not in {"file", "findings"}},
        "scenarios": [scenario.as_json() for scenario in scenarios],
        "findings": [finding.as_json() for finding in findings],
    }

    def show() -> None:
        for simulation in scenarios or [everything]:
            _matrix(checked, simulation)
        for finding in findings:
            render.line(render.FAILED, f"{finding.file or checked.name}: {finding.message} ({finding.code})")
        if not findings:
            told = f"{everything.branches} branches" if everything.branches != 1 else "1 branch"
            render.success(f"{checked.name}: {told}, and every step and gate is on one of them.")

    render.emit(answer, as_json=as_json, text=show)
    raise typer.Exit(1 if findings else 0)


def _read(path: Path) -> AnswersFile:
    data = read_bytes(path, max_bytes=DEFAULT_LIMITS.max_bytes, what="file of answers")
    return parse_model(AnswersFile, read(data, file=str(path)))


def _matrix(checked: Checked, simulation: Simulation) -> None:
    render.text(simulation.file or checked.name)
    for number, outcome in enumerate(simulation.outcomes, 1):
        said = [f"{name}: {' | '.join(words)}" for _, name, words in outcome.choices] or ["nothing to decide"]
        came = " → ".join((*outcome.ran, _end(outcome)))
        for mark, each in zip([f"{number:>3}", *("   " for _ in said)], [*said, f"→ {came}"], strict=True):
            render.text(f"{mark}  {each}")
    left = simulation.branches - len(simulation.outcomes)
    if left:
        render.warning(f"{left} of {simulation.branches} branches are left out here; --rows shows more.")
    if simulation.cut:
        found = f"{simulation.cut} states were found and not followed"
        render.warning(f"{found}; there are at least {simulation.branches} branches. --limit follows more.")


def _end(outcome: BranchOutcome) -> str:
    if outcome.status is None:
        return "not followed"
    return f"{outcome.status} ({outcome.error})" if outcome.error else outcome.status
