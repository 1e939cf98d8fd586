"""The report of a simulation: its branches, how they end, and their problems."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from kneo.runtime.interpreter.program import ROOT_AGENT, Program
from kneo.runtime.program.compiler import compile_program
from kneo.runtime.simulate.exploration import BranchMatrix, BranchOutcome, Exploration
from kneo.runtime.simulate.layout import Layout
from kneo.runtime.simulate.scenario import ANY_QUESTIONS, Privileged, Scenario
from kneo.spec.coverage.privileged_calls import privileged_calls
from kneo.spec.index import ROOT, SpecIndex
from kneo.spec.models.answers import AnswersFile, Expectation
from kneo.spec.models.environment import QuestionPolicy
from kneo.spec.models.spec import Spec
from kneo.spec.modules import NOTHING_KNOWN

MAX_STATES = 20_000
MAX_ROWS = 100

MAX_CHECKED = 10_000
"""Branches that are compared with an expectation, and searched for ungated calls."""

_ROUND = re.compile(r"[#@][0-9]+")
"""The rounds and repetitions in a location."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem. ``where`` is a step, a question or an answer."""

    code: str
    where: str
    message: str
    file: str | None = None

    def as_json(self) -> dict[str, object]:
        return {"code": self.code, "where": self.where, "message": self.message, "file": self.file}


@dataclass(frozen=True, slots=True)
class Simulation:
    """The result of one exploration.

    Attributes:
        file: The answers file; None for all branches.
        branches: The number of branches.
        outcomes: Some of the branches.
        cut: States that were found and not followed; each stands for at least one further branch.
        findings: The problems.
    """

    file: str | None
    branches: int
    outcomes: Sequence[BranchOutcome]
    cut: int
    findings: Sequence[Finding]

    def as_json(self) -> dict[str, object]:
        return {
            "file": self.file,
            "branches": self.branches,
            "shown": len(self.outcomes),
            "left_out": self.branches - len(self.outcomes),
            "complete": self.cut == 0,
            "not_followed": self.cut,
            "outcomes": [outcome.as_json() for outcome in self.outcomes],
            "findings": [finding.as_json() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True)
class Simulator:
    """Simulates one spec.

    Attributes:
        least: The environment's least requirements of every question.
        limit: The largest number of states that are followed.
        rows: The largest number of branches that are listed.
    """

    program: Program
    layout: Layout
    privileged: Privileged
    least: QuestionPolicy
    limit: int
    rows: int

    @classmethod
    def of(
        cls, spec: Spec, *, least: QuestionPolicy = ANY_QUESTIONS, limit: int = MAX_STATES, rows: int = MAX_ROWS
    ) -> Simulator:
        """Prepare a spec.

        Raises:
            Invalid: the spec uses a feature that this runtime cannot execute.
        """
        view = SpecIndex.of(spec, NOTHING_KNOWN)
        program = compile_program(_always_asking(spec), "workflow")
        return cls(program, Layout.of(program), _by_step(view, privileged_calls(view)), least, limit, rows)

    def everything(self) -> Simulation:
        """Explore every branch: each step, question and gate must be on one of them."""
        walk = Exploration(self.program, Scenario(self.layout, least=self.least), self.privileged, self.limit)
        matrix = BranchMatrix.of(walk)
        findings = (*self._unreached(walk), *_ungated(matrix, None))
        return Simulation(None, matrix.count, self._listed(matrix), walk.cut, findings)

    def following(self, file: str, written: AnswersFile) -> Simulation:
        """Explore the branches of given answers and outputs."""
        script = Scenario(self.layout, written, self.least)
        walk = Exploration(self.program, script, self.privileged, self.limit)
        matrix = BranchMatrix.of(walk)
        findings = (
            *_misused(script, file),
            *_ungated(matrix, file),
            *(_unexpected(matrix, written.expect, file) if written.expect else ()),
        )
        return Simulation(file, matrix.count, self._listed(matrix), walk.cut, findings)

    def _listed(self, matrix: BranchMatrix) -> Sequence[BranchOutcome]:
        return tuple(islice(matrix.outcomes(), self.rows))

    def _unreached(self, walk: Exploration) -> Iterator[Finding]:
        far = f" within {self.limit} states" if walk.cut else ""
        for path in sorted(self.layout.steps - walk.reached):
            yield Finding("unreachable_step", path, f"No branch{far} runs {path}.")
        for path, position in sorted(self.layout.gates - walk.asked):
            location = path if position == "step" else f"{path}.{position}"
            yield Finding("unreachable_gate", location, f"No branch{far} asks {location}.")


def _always_asking(spec: Spec) -> Spec:
    """Return the spec with sampled questions always asked: an approval continues like a run that was not sampled."""
    return type(spec).model_validate(_without_chance(spec.model_dump(by_alias=True, exclude_unset=True)))


def _without_chance(value: object) -> object:
    if isinstance(value, Mapping):
        found = {key: _without_chance(inner) for key, inner in value.items()}
        if found.get("sample"):
            found["sample"] = 1.0
        return found
    return [_without_chance(inner) for inner in value] if isinstance(value, list | tuple) else value


def _by_step(view: SpecIndex, calls: Mapping[tuple[str, str], str]) -> Privileged:
    """Return calls by the kind and ref of their steps."""
    found = {("function", name): call for (kind, name), call in calls.items() if kind == "function"}
    names = [view.spec.agent.name, *view.spec.components.agents]
    parts = {ROOT_AGENT: ROOT, **{name: view.agent_part(name) for name in names}}
    agents = {("agent", name): calls[part] for name, part in parts.items() if part in calls}
    guardrails = {("guardrail", name): call for (_, name), call in agents.items()}
    return found | agents | guardrails


def _ungated(matrix: BranchMatrix, file: str | None) -> Iterator[Finding]:
    seen = set()
    for outcome in islice(matrix.outcomes(), MAX_CHECKED):
        for location, call in outcome.ungated:
            if location not in seen:
                seen.add(location)
                said = "; ".join(f"{name}: {' or '.join(words)}" for _, name, words in outcome.choices)
                message = f"{location} calls {call} without any approval ({said or 'no question was asked'})."
                yield Finding("privileged_ungated", location, message, file)


def _misused(script: Scenario, file: str) -> Iterator[Finding]:
    for unfit in script.unfit.values():
        yield Finding("answer_unfit", unfit.key, f"The answer to {unfit.key} does not fit: {unfit.why}.", file)
    for key in sorted((script.written.answers.keys() | script.written.outputs.keys()) - script.used):
        what = "asks" if key in script.written.answers else "runs"
        yield Finding("answer_unused", key, f"No branch {what} {key}.", file)


def _unexpected(matrix: BranchMatrix, wanted: Expectation, file: str) -> Iterator[Finding]:
    """Compare branches with the expectation, up to the first that differs."""
    for outcome in islice(matrix.outcomes(), MAX_CHECKED):
        wrong = list(_differences(outcome, wanted))
        if wrong:
            yield Finding("unexpected_outcome", "expect", f"Not as expected: {'; '.join(wrong)}.", file)
            return
    if matrix.count > MAX_CHECKED:
        message = f"{matrix.count} branches are more than the {MAX_CHECKED} that are compared with expect: write more answers."
        yield Finding("unexpected_outcome", "expect", message, file)


def _differences(outcome: BranchOutcome, wanted: Expectation) -> Iterator[str]:
    said = {"status": outcome.status, "error": outcome.error, "output": outcome.output}
    for name, got in said.items():
        expected = getattr(wanted, name)
        if expected is not None and got != expected:
            yield f"{name} is {got}, not {expected}"
    ran = {name for location in outcome.ran for name in (location, _ROUND.sub("", location))}
    yield from (f"{location} did not run" for location in wanted.ran if location not in ran)
    yield from (f"{location} ran" for location in wanted.not_run if location in ran)
