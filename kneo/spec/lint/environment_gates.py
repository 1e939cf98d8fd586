"""Questions that an environment adds: whether each of them can be asked, answered, and keeps back what it stands before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from kneo.spec.coverage.gate_strength import UNSIGNED_HINT, judge_gate, unsigned_silence
from kneo.spec.coverage.gates import DEFAULT_HUMAN, effective_human, named_human
from kneo.spec.diagnostics import Diagnostic, error
from kneo.spec.documents import Path
from kneo.spec.gates import default_rejection
from kneo.spec.lint.gates import DECISIONS
from kneo.spec.lint.schemas import form_findings
from kneo.spec.messages import suggest
from kneo.spec.models import Candidates, Gate, Human
from kneo.spec.models.environment_gates import EnvironmentGate, EnvironmentGatePosition, Match
from kneo.spec.models.human import NOT_HONOURED

CODE = "E_ENVIRONMENT"

REVIEWERS = Human(candidates=Candidates(roles=("reviewer",)))
"""Who is asked where a gate names nobody, and the environment declares nobody as ``default``."""

AFTER_KINDS = ("agent", "function", "workflow", "guardrail", "steps", "parallel", "router")
"""Kinds of steps whose result can be looked at; the others have none of their own."""


class KnownPerson(Protocol):
    """Somebody whom an environment knows."""

    @property
    def groups(self) -> tuple[str, ...]: ...

    @property
    def roles(self) -> tuple[str, ...]: ...


def resolved(gates: Iterable[EnvironmentGate], humans: Mapping[str, Human]) -> tuple[EnvironmentGate, ...]:
    """Write out whom each question asks: always people of the environment, never those of a spec."""
    known = _known(humans)
    return tuple(
        one.model_copy(
            update={
                place: gate.model_copy(update={"human": named_human(gate, known)})
                for place, gate in one.gates().items()
            }
        )
        for one in gates
    )


def _known(humans: Mapping[str, Human]) -> dict[str, Human]:
    return {DEFAULT_HUMAN: REVIEWERS, **humans}


def added_problems(
    gates: Sequence[EnvironmentGate], humans: Mapping[str, Human], people: Iterable[KnownPerson]
) -> Iterator[Diagnostic]:
    """Find what is wrong with an environment's questions.

    Args:
        gates: The questions.
        humans: Whom they may ask.
        people: Who is who there.
    """
    for name, human in humans.items():
        yield from form_findings(human, ("spec", "humans", name))
    everybody = list(people)
    groups = {name for person in everybody for name in person.groups}
    roles = {name for person in everybody for name in person.roles}
    names: set[str] = set()
    for index, one in enumerate(gates):
        path: Path = ("spec", "gates", index)
        if one.name in names:
            yield error(CODE, f"Two gates are called {one.name}.", (*path, "name"))
        names.add(one.name)
        if one.match == Match():
            hint = (
                "Write at least one of capabilities, kinds, refs, tools, steps, workflows; steps: ['*'] is every step."
            )
            yield error(CODE, f"The gate {one.name} matches nothing.", (*path, "match"), suggestion=hint)
        if not one.gates():
            yield error(CODE, f"The gate {one.name} asks nothing.", path, suggestion="Write before or after.")
        for place, gate in one.gates().items():
            at = (*path, place)
            if isinstance(gate.human, str) and gate.human not in humans:
                hint = suggest(gate.human, tuple(humans)) or "Declare it under humans of this environment."
                message = f"The gate {one.name} asks {gate.human}, whom this environment does not declare."
                yield error(CODE, message, (*at, "human"), suggestion=hint)
                continue
            yield from form_findings(gate, at)
            if isinstance(gate.human, Human):
                yield from form_findings(gate.human, (*at, "human"))
            yield from _where(one, place, at)
            yield from _what(gate, place, humans, at)
            yield from _who(effective_human(gate, _known(humans)), groups, roles, at)


def _where(one: EnvironmentGate, place: EnvironmentGatePosition, at: Path) -> Iterator[Diagnostic]:
    wrong = [kind for kind in one.match.kinds if place == "after" and kind not in AFTER_KINDS]
    if wrong:
        message = f"after means nothing for steps of kind {', '.join(wrong)}."
        yield error(CODE, message, at, suggestion=f"Here the kinds are {', '.join(AFTER_KINDS)}; or ask before.")


def _what(gate: Gate, place: EnvironmentGatePosition, humans: Mapping[str, Human], at: Path) -> Iterator[Diagnostic]:
    human = effective_human(gate, _known(humans))
    legal = DECISIONS[place]
    wrong = [decision for decision in human.decisions or () if decision not in legal]
    if wrong:
        message = f"{place} cannot be answered with {', '.join(wrong)}."
        yield error(CODE, message, (*at, "decisions"), suggestion=f"Here the answers are {', '.join(legal)}.")
    unheard = [name for name in NOT_HONOURED if getattr(human, name)]
    unheard += [f"a secret field ({field.name})" for field in human.fields if field.secret]
    if unheard:
        message = f"Every run here would be refused: {', '.join(unheard)} is not honoured."
        yield error(CODE, message, at, suggestion="Leave it out.")
    if gate.key is not None:
        message = "A gate of an environment is called by the place and its own name."
        yield error(CODE, message, (*at, "key"), suggestion="Leave key out.")
    effects = ("stop", "cancel", "skip", "fail", *(("retry",) if place == "after" else ()))
    if human.on_reject is not None and human.on_reject not in effects:
        message = f"on_reject: {human.on_reject} means nothing {place} a step of an environment's choice."
        hint = f"Here a rejection does one of {', '.join(effects)}; left out: {default_rejection(place)}."
        yield error(CODE, message, (*at, "on_reject"), suggestion=hint)
        return
    unsigned = unsigned_silence(human, default_rejection(place))
    if unsigned is not None:
        yield error(CODE, unsigned, (*at, "on_timeout"), suggestion=UNSIGNED_HINT)
    always = gate.model_copy(update={"when": None, "sample": None})
    verdict = judge_gate(always, place, _known(humans), default_reject=default_rejection(place))
    if verdict.weakness is not None and not wrong:
        message = f"This is no gate: it {verdict.weakness}."
        hint = "Let it be rejected, and let silence fail, cancel, reject, skip or escalate."
        yield error(CODE, message, at, suggestion=hint)


def _who(human: Human, groups: set[str], roles: set[str], at: Path) -> Iterator[Diagnostic]:
    asked = human.candidates
    if asked is None or asked.users or human.assignee or not (asked.groups or asked.roles):
        return
    if not (set(asked.groups) & groups or set(asked.roles) & roles):
        wanted = ", ".join((*asked.groups, *asked.roles))
        message = f"Nobody under people is one of those whom it asks: {wanted}."
        hint = "Give somebody the role or group, or name a human whom this environment declares."
        yield error(CODE, message, at, suggestion=hint)
