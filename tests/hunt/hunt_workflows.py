"""Random workflows: what the engine does, beside an independent model of what they mean.

Compared are the order of everything that is asked and done, subjects and inputs, how a run ends and with what, and what people
were shown that their answer leads to. In any order of things beside each other holds: each ticket is done once, nothing runs
behind a gate that is open or was rejected, and no branch but the one that a person chose.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pprint import pformat

from hunt.random_flows import Flows, Tree
from hunt.reference import Event, Reference, Said, Value
from hunt.report import Budget, Finding, Report
from run_simulator import MOMENT, decision, through_json

from kneo.errors import Invalid
from kneo.records.run import RunError
from kneo.runtime.engine.questions import consequences
from kneo.runtime.interpreter.node import Ask, Execute, RunEnded, StepFailed, Succeeded, TaskDecided, TaskOpened
from kneo.runtime.interpreter.program import Program, actions, begin, settle, waiting
from kneo.runtime.program.compiler import compile_program
from kneo.spec.conditions import draw
from kneo.spec.models.spec import Spec

MOST_EVENTS = 3000
"""Of one run; retries inside loops inside graphs can make a run long, and a longer one says nothing new."""


class Long(Exception):
    """A run that goes on for longer than is worth following."""


@dataclass
class Fate:
    """What steps say and people answer, by place and key alone."""

    seed: str
    events: int = 0

    def _number(self, *about: object) -> int:
        self.events += 1
        if self.events > MOST_EVENTS:
            raise Long
        return int.from_bytes(sha256(repr((self.seed, *about)).encode()).digest()[:6])

    def work(self, ticket: str, value: Value) -> str | None:
        number = self._number("work", ticket, value.text, value.feedback)
        return None if number % 5 == 0 else ("x", "y", "x y", f"n{number % 997}", "x")[number // 5 % 5]

    def answer(self, key: str, kinds: Sequence[str], options: Sequence[str]) -> Said:
        number = self._number("answer", key)
        kind = sorted(kinds)[number % len(kinds)]
        if kind == "selected":
            return Said(kind, sorted(options)[number // 7 % len(options)])
        return Said(kind, "" if kind == "approved" else ("x", "y", f"a{number % 97}")[number // 7 % 3])

    def draws(self, seed: str, share: float) -> bool:
        case = "".join(part.lstrip("0123456789") if number else part for number, part in enumerate(seed.split("@")))
        return draw(f"{MOMENT.sampling_seed}:{case}") < share


@dataclass
class Played:
    """One run of the engine.

    Attributes:
        events: As the reference has them.
        told: By the number of an event that is an answer: what people were shown of it.
        log: Everything with its place, for the laws that hold in any order: done, asked, approved, rejected.
    """

    events: list[Event] = field(default_factory=list)
    told: list[tuple[int, object]] = field(default_factory=list)
    log: list[tuple[str, str, str]] = field(default_factory=list)
    end: tuple[str, str | None, str | None] = ("", None, None)


def play(program: Program, fate: Fate, choose: random.Random) -> Played:
    state, played = begin(program, "in", MOMENT), Played()
    while not isinstance(state, RunEnded):
        state = through_json(state)
        todo, open_asks = list(actions(program, state)), list(waiting(program, state).values())
        chosen = choose.choice([*todo, *open_asks])
        if isinstance(chosen, Ask) and chosen in todo:
            played.events.append(("ask", chosen.key, chosen.subject.text))
            played.log.append(("asked", place_of(chosen), chosen.gate.position))
            state = settle(program, state, chosen.ticket, TaskOpened(task_id=f"t:{chosen.ticket}"), MOMENT)
        elif isinstance(chosen, Ask):
            said = fate.answer(chosen.key, [kind.value for kind in chosen.gate.decisions], chosen.options or ())
            found = consequences(program, state, chosen, MOMENT).get(said.kind)
            if said.kind == "selected" and isinstance(found, Mapping):
                found = found["options"][said.text]
            played.told.append((len(played.events), found))
            played.log.append((said.kind, place_of(chosen), chosen.gate.position))
            answer = TaskDecided(decision=decision(said.kind, said.text or None))
            state = settle(program, state, chosen.ticket, answer, MOMENT)
        else:
            state = settle(program, state, chosen.ticket, did(chosen, fate, played), MOMENT)
    error = state.error.type if state.error else None
    played.end = (state.status.value, state.output, error)
    return played


def did(execute: Execute, fate: Fate, played: Played) -> Succeeded | StepFailed:
    review = execute.value.review
    feedback = review.feedback if review else None
    played.events.append(("do", execute.ticket, execute.value.text, feedback or ""))
    played.log.append(("done", execute.ticket.rpartition(":")[0], execute.activity.path))
    said = fate.work(execute.ticket, Value(execute.value.text, feedback=feedback))
    return StepFailed(error=RunError(type="boom", message="")) if said is None else Succeeded(text=said)


def place_of(ask: Ask) -> str:
    place, _, _ = ask.ticket.rpartition(f":{ask.gate.position_id}")
    return place


# ---- the laws ---------------------------------------------------------------------------------------------------


def broken(spec: Tree, played: Played, reference: Reference, end: tuple[str, str | None, str | None]) -> Iterator[str]:
    stand_ins = dict(stand_ins_of(spec))
    yield from _in_any_order(spec, played, stand_ins)
    if reference.unclear:
        return
    if played.end != end:
        yield f"It ended as {played.end}, not {end}."
    if reference.beside:
        if Counter(played.events) != Counter(reference.events):
            more, less = (
                Counter(played.events) - Counter(reference.events),
                Counter(reference.events) - Counter(played.events),
            )
            yield f"It did {sorted(more)} too much and {sorted(less)} not."
        return
    if played.events != reference.events:
        at = next(
            (n for n, pair in enumerate(zip(played.events, reference.events, strict=False)) if pair[0] != pair[1]), -1
        )
        yield f"Event {at} differs: {played.events[at : at + 2]}, not {reference.events[at : at + 2]}."
    for number, told in played.told:
        yield from _untrue(told, reference.events[number : number + 1], end, stand_ins)


def _untrue(
    told: object, following: Sequence[Event], end: tuple[str, str | None, str | None], stand_ins: Mapping[str, str]
) -> Iterator[str]:
    """Compare what a person was shown with what the model does next."""
    assert isinstance(told, Mapping)
    branches = told.get("branches", [told])
    if not following:
        if end[0] not in [branch.get("ends") for branch in branches]:
            yield f"A person was shown {told}, and the run ended as {end[0]}."
        return
    kind, name, *_ = following[0]
    shown = [
        [one["key"] for one in branch.get("asks", ())] if kind == "ask" else list(branch.get("next", ()))
        for branch in branches
    ]
    path = name if kind == "ask" else path_of(name, stand_ins)
    if [path] not in shown:
        yield f"A person was shown {told}, and then came {following[0]}."


def path_of(ticket: str, stand_ins: Mapping[str, str]) -> str:
    """Reduce a ticket to the path of its step: without rounds and attempts, and with the step that stands in."""
    names = []
    for part in ticket.split("/"):
        name = part.split(":")[0].split("@")[0].split("#")[0]
        for _ in range(part.count(":fallback")):
            name = stand_ins[name]
        names.append(name)
    return "/".join(names)


def stand_ins_of(part: object) -> Iterator[tuple[str, str]]:
    """Find the steps that stand in for others, by the ids of those."""
    if isinstance(part, Mapping):
        if "fallback_ref" in part:
            yield part["id"], part["fallback_ref"]
        for inner in part.values():
            yield from stand_ins_of(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from stand_ins_of(inner)


def _in_any_order(spec: Tree, played: Played, stand_ins: Mapping[str, str]) -> Iterator[str]:
    tickets = [event[1] for event in played.events if event[0] == "do"]
    if len(set(tickets)) < len(tickets):
        yield f"Done twice: {[ticket for ticket, times in Counter(tickets).items() if times > 1]}."
    branches = dict(_branches(spec))
    shut: dict[str, str] = {}
    ways: dict[str, set[str]] = {}
    for what, place, more in played.log:
        if what == "done":
            for gate, why in shut.items():
                if within(place, gate):
                    yield f"{place} was done behind {gate}, which {why}."
            for gate, forbidden in ways.items():
                if within(place, gate) and set(path_of(place, stand_ins).split("/")) & forbidden:
                    yield f"{place} was done, and a person chose the other branch of {gate}."
        elif more == "before":
            shut.pop(place, None)
            step = path_of(place, stand_ins).split("/")[-1]
            if what == "asked":
                shut[place] = "was open"
            elif step in branches and (what == "approved" or branches[step][2]):
                then, otherwise, _ = branches[step]
                ways[place] = otherwise if what == "approved" else then
            elif what == "rejected":
                shut[place] = "was rejected"


def _branches(part: object) -> Iterator[tuple[str, tuple[set[str], set[str], bool]]]:
    """Find conditions by their ids: the ids of each branch, and whether a rejection takes the other one."""
    if isinstance(part, Mapping):
        if part.get("kind") == "condition":
            gate = part.get("review", {}).get("before", {})
            rejected = gate.get("on_reject", "else") == "else"
            yield part["id"], (set(_ids(part["steps"])), set(_ids(part["else"])), rejected)
        for inner in part.values():
            yield from _branches(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _branches(inner)


def _ids(steps: Sequence[Tree]) -> Iterator[str]:
    return (step["id"] for step in steps)


def within(place: str, gate: str) -> bool:
    # What stands in for a step is no part of it, though its place lies below.
    rest = place.removeprefix(gate)
    return place.startswith(gate) and (not rest or rest[0] in "/@") and ":fallback" not in rest


# ---- the hunt ---------------------------------------------------------------------------------------------------


def hunt(budget: Budget) -> Report:
    report = Report(counts={"followed": 0, "with questions": 0, "beside each other": 0, "repeated": 0, "rejected": 0})
    for seed in budget.seeds():
        report.cases += 1
        for law in _case(seed, report):
            report.findings.append(Finding(seed, law[0], law[1]))
    return report


def _case(seed: int, report: Report) -> Iterator[tuple[str, str]]:
    chance = random.Random(seed)
    spec = Flows(chance, parallel=chance.random() < 0.4).spec()
    try:
        program = compile_program(Spec.model_validate(spec), "workflow")
    except Invalid:
        return  # fallbacks that go round in circles
    try:
        reference = Reference(spec, Fate(str(seed)))
        end = reference.run("in")
        played = play(program, Fate(str(seed)), chance)
    except Long:
        return
    report.count("followed")
    report.count("with questions", any(event[0] == "ask" for event in played.events))
    report.count("beside each other", reference.beside)
    report.count("repeated", any("@" in event[1] for event in played.events))
    report.count("rejected", any(what == "rejected" for what, _, _ in played.log))
    for law in broken(spec, played, reference, end):
        yield law, pformat({"workflow": spec["workflow"], "log": played.log}, width=140, compact=True, sort_dicts=False)
