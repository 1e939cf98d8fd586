"""Rules for names: parts, options, people and channels have readable and distinct names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from kneo.names import name_problem, person_key, person_problem, shown
from kneo.spec.coverage.gates import all_gates
from kneo.spec.diagnostics import Diagnostic, error
from kneo.spec.documents import Path
from kneo.spec.index import SpecIndex
from kneo.spec.models.environment import QuestionPolicy
from kneo.spec.models.human import Gate, Human
from kneo.spec.models.workflow import RouterStep

CODE = "E_NAME"

CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
"""Names of channels: the end of the name of a variable, ``slack-ops`` as ``KNEO_SERV_CHANNEL_SLACK_OPS``."""


def names(index: SpecIndex) -> Iterator[Diagnostic]:
    """Check the names of agents, workflows, steps, components, options, people and channels."""
    yield from _declared(index)
    yield from _parts(index)
    for name, human in index.spec.components.humans.items():
        yield from human_names(human, ("components", "humans", name))
    for gate in all_gates(index):
        yield from gate_names(gate.gate, gate.path)
        if gate.gate.key is not None:
            yield from _name(gate.gate.key, (*gate.path, "key"))


def _parts(index: SpecIndex) -> Iterator[Diagnostic]:
    for agent in index.agents:
        yield from _name(agent.agent.name, (*agent.path, "name"))
    for workflow in index.workflows:
        if workflow.workflow.name is not None:
            yield from _name(workflow.workflow.name, (*workflow.path, "name"))
    for at in index.steps:
        yield from _name(at.step.id, (*at.path, "id"))
        if isinstance(at.step, RouterStep):
            yield from _keys(at.step.choices, (*at.path, "choices"))
        if at.key is not None:
            yield from _key(at.key, at.path)


def _declared(index: SpecIndex) -> Iterator[Diagnostic]:
    spec = index.spec
    for kind in ("agents", "workflows", "functions", "humans"):
        yield from _keys(getattr(spec.components, kind), ("components", kind))
    for kind in ("tools", "skills", "mcp_servers"):
        yield from _keys(getattr(spec, kind), (kind,))


def gate_names(gate: Gate, path: Path) -> Iterator[Diagnostic]:
    """Check the names of a gate and of the human that is written out in it."""
    yield from human_names(gate, path)
    if isinstance(gate.human, Human):
        yield from human_names(gate.human, (*path, "human"))


def human_names(human: Human, path: Path) -> Iterator[Diagnostic]:
    """Check the names in a question: of people, groups, roles, options, fields and channels."""
    if human.assignee is not None:
        yield from _person(human.assignee, (*path, "assignee"))
    if human.candidates is not None:
        below = (*path, "candidates")
        yield from _people(human.candidates.users, (*below, "users"))
        yield from _people(human.candidates.exclude, (*below, "exclude"))
        yield from _names(human.candidates.groups, (*below, "groups"))
        yield from _names(human.candidates.roles, (*below, "roles"))
    for number, step in enumerate(human.escalate):
        yield from _person(step.to, (*path, "escalate", number, "to"))
        yield from _channels(step.notify, (*path, "escalate", number, "notify"))
    yield from _names(human.options or (), (*path, "options"))
    for number, field in enumerate(human.fields):
        yield from _name(field.name, (*path, "fields", number, "name"))
    yield from _channels(human.notify, (*path, "notify"))


def environment_names(
    people: Iterable[str], humans: Mapping[str, Human], questions: QuestionPolicy
) -> Iterator[Diagnostic]:
    """Check the names in an environment file: of its people, each once, and of its humans."""
    first_names: dict[str, str] = {}
    for name in people:
        path = ("spec", "people", name)
        problems = [replace(found, at_key=True) for found in _person(name, path)]
        yield from problems
        first = first_names.setdefault(person_key(name), name)
        if first != name and not problems:
            message = f"{shown(name)} and {shown(first)} are two spellings of one name."
            yield replace(error(CODE, message, path, suggestion="Write each person once."), at_key=True)
    yield from _keys(humans, ("spec", "humans"))
    for name, human in humans.items():
        yield from human_names(human, ("spec", "humans", name))
    yield from _people(questions.exclude, ("spec", "questions", "exclude"))


def _keys(parts: Iterable[str], path: Path) -> Iterator[Diagnostic]:
    for name in parts:
        yield from _key(name, (*path, name))


def _key(name: str, path: Path) -> Iterator[Diagnostic]:
    yield from (replace(found, at_key=True) for found in _name(name, path))


def _names(several: Iterable[str], path: Path) -> Iterator[Diagnostic]:
    for number, name in enumerate(several):
        yield from _name(name, (*path, number))


def _name(name: str, path: Path) -> Iterator[Diagnostic]:
    yield from _finding(name_problem(name), path)


def _people(several: Iterable[str], path: Path) -> Iterator[Diagnostic]:
    for number, name in enumerate(several):
        yield from _person(name, (*path, number))


def _person(name: str, path: Path) -> Iterator[Diagnostic]:
    yield from _finding(person_problem(name), path)


def _channels(several: Iterable[str], path: Path) -> Iterator[Diagnostic]:
    for number, name in enumerate(several):
        if not CHANNEL.fullmatch(name):
            message = f"{shown(name)} is no name of a channel: letters, digits, dashes and underscores."
            hint = "Name the end of a KNEO_SERV_CHANNEL_… variable: slack-ops for KNEO_SERV_CHANNEL_SLACK_OPS."
            yield error(CODE, message, (*path, number), suggestion=hint)


def _finding(problem: str | None, path: Path) -> Iterator[Diagnostic]:
    if problem is not None:
        yield error(CODE, f"The name {problem}", path, suggestion="Write a name of visible characters.")
