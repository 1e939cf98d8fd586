"""Gates before a state: a fork, or a continued run, asks them again before it continues behind them.

Frame: ``fork_gates`` (the gates still to be asked, in order), ``ticket`` (the action whose input was changed, if any),
``task`` while the first of them is open, and one child, ``run``: the state behind the gates.

Each gate is a yes-or-no question to the gate's own people: may the run continue behind it? Every answer but yes stops it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kneo.records.task import REPLAYED, Decision, DecisionKind
from kneo.runtime.interpreter.gate import CompiledGate, rejection
from kneo.runtime.interpreter.node import (
    Ask,
    DecisionContext,
    Frame,
    GateRecheck,
    Outcome,
    ProgramNode,
    RunEnded,
    Stale,
    TaskDecided,
    TaskLapsed,
    TaskOpened,
    children,
    dropped,
    mismatch,
    stopped,
)
from kneo.runtime.interpreter.values import Value
from kneo.spec.gates import positions_of

FORK_GATES = "fork_gates"

RUN = "run"
"""The key of the state behind the gates."""

CAREFUL_TIMEOUTS = frozenset({"fail", "cancel", "reject", "escalate"})
"""Timeout policies that such a question keeps; every other one becomes a rejection."""

EDITABLE = frozenset({"step", "before"}) | positions_of("result")
"""Positions at which a reviewer may edit a changed input."""

GateLocation = tuple[str, str, str]
"""The path of a step, the gate's position there, and the human whom a function asks."""

GateIndex = Mapping[GateLocation, CompiledGate]


@dataclass(frozen=True, kw_only=True)
class PassedGate:
    """A gate that was passed before the fork point, as a frame keeps it."""

    path: str
    spot: str
    """The gate's position id."""
    step_id: str
    key: str
    subject: str
    """The value that was passed on behind the gate."""
    human: str = ""
    """The human, where a function asked in the middle of its work."""
    source: str | None = None
    """The run in which it was answered; the answer may be used again."""
    prompt: str | None = None
    options: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    """The options that were selected."""
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def location(self) -> GateLocation:
        return self.path, self.spot, self.human

    def as_json(self) -> dict[str, object]:
        values = {name: value for name, value in self.__dict__.items() if value not in (None, "", (), {})}
        for name in ("options", "chosen"):
            if name in values:
                values[name] = list(values[name])
        return {"subject": "", **values}


def read_passed(content: object) -> PassedGate:
    """Read the JSON of ``as_json``."""
    assert isinstance(content, Mapping)
    options, chosen = tuple(content.get("options", ())), tuple(content.get("chosen", ()))
    return PassedGate(**{**content, "options": options, "chosen": chosen})


def index_gates(root: ProgramNode) -> GateIndex:
    """Return every gate of a program by its location."""
    index: dict[GateLocation, CompiledGate] = {}
    ahead = [root]
    while ahead:
        node = ahead.pop()
        for gate, human in node.own_gates():
            index.setdefault((node.path, gate.position_id, human), gate)
        ahead.extend(node.parts())
    return index


def with_fork_gates(state: Frame, gates: Sequence[PassedGate], *, ticket: str | None = None) -> Frame:
    """Return a state with gates before it."""
    if not gates:
        return state
    frame: Frame = {"node": "", FORK_GATES: [gate.as_json() for gate in gates], "children": {RUN: state}}
    return {**frame, "ticket": ticket} if ticket is not None else frame


@dataclass(frozen=True, kw_only=True)
class ForkGates:
    """The root of a state with gates before it; it has the methods of a node.

    Attributes:
        body: The program's root, which continues behind the gates.
        gates: The program's gates.
    """

    body: ProgramNode
    gates: GateIndex

    def ready(self, frame: Frame, _location: str) -> Iterator[Ask]:
        if frame.get("task") is None:
            yield self._ask(frame)

    def waiting(self, frame: Frame, _location: str) -> Iterator[tuple[str, Ask]]:
        task = frame.get("task")
        if isinstance(task, str):
            yield task, self._ask(frame)

    def settle(
        self, _context: DecisionContext, frame: Frame, ticket: str, outcome: Outcome, _location: str
    ) -> Frame | RunEnded:
        """Apply the outcome of the question.

        Raises:
            Stale: the run asks another question now.
        """
        ask = self._ask(frame)
        if ask.ticket != ticket:
            raise Stale(ticket)
        match outcome:
            case TaskOpened():
                return {**frame, "task": outcome.task_id}
            case TaskLapsed():
                return dropped(frame, "task")
            case TaskDecided():
                return self._decided(frame, ask, outcome.decision)
            case _:
                raise mismatch(ask.path, outcome)

    def _decided(self, frame: Frame, ask: Ask, decision: Decision) -> Frame | RunEnded:
        chosen = decision.selected_options or ((decision.selected_option,) if decision.selected_option else ())
        match decision.kind:
            case _ if decision.by == REPLAYED:
                return self._behind(frame)
            case DecisionKind.APPROVED:
                return self._behind(frame)
            case DecisionKind.SELECTED if chosen == passed_gates(frame)[0].chosen:
                return self._behind(frame)
            case DecisionKind.EDITED if DecisionKind.EDITED in ask.gate.decisions:
                return self._behind(frame, edited=decision.content or "")
            case _:
                return stopped(rejection(ask.path, decision))

    def _behind(self, frame: Frame, *, edited: str | None = None) -> Frame:
        state, ticket, left = children(frame)[RUN], frame.get("ticket"), passed_gates(frame)[1:]
        if edited is not None and isinstance(ticket, str):
            state = self.body.replace_input(state, ticket, edited, "")
            left = tuple(replace(gate, subject=edited) for gate in left)
        return with_fork_gates(state, left, ticket=ticket if isinstance(ticket, str) else None)

    def _ask(self, frame: Frame) -> Ask:
        gates = passed_gates(frame)
        first = gates[0]
        return Ask(
            # A ticket names one question of a run; a run may come to the same gate again later.
            ticket=f"{first.key}:fork{len(gates)}:{first.source or ''}",
            path=first.path,
            step_id=first.step_id,
            key=first.key,
            gate=self._gate(first, changed="ticket" in frame),
            subject=Value(text=first.subject),
            options=first.options or None,
            prompt=first.prompt,
            facts=first.facts,
            human=first.human or None,
            recheck=GateRecheck(source=first.source),
        )

    def _gate(self, passed: PassedGate, *, changed: bool) -> CompiledGate:
        gate = self.gates[passed.location]
        decisions = [DecisionKind.APPROVED, DecisionKind.REJECTED]
        if passed.chosen:
            decisions.append(DecisionKind.SELECTED)
        if changed and gate.position in EDITABLE and DecisionKind.EDITED in gate.decisions:
            decisions.append(DecisionKind.EDITED)
        update: dict[str, object] = {"fields": (), "answer_schema": None, "decisions": None, "default_option": None}
        if gate.human.on_timeout not in CAREFUL_TIMEOUTS:
            update["on_timeout"] = "reject"
        human = gate.human.model_copy(update=update)
        return replace(gate, human=human, decisions=tuple(decisions), on_reject="stop")

    def prepare_retry(self, frame: Frame) -> Frame:
        return {**frame, "children": {RUN: self.body.prepare_retry(children(frame)[RUN])}}

    def replace_input(self, frame: Frame, ticket: str, text: str, location: str) -> Frame:
        return {**frame, "children": {RUN: self.body.replace_input(children(frame)[RUN], ticket, text, location)}}

    def reset_questions(self, frame: Frame) -> Frame:
        """Return the state behind the gates; the caller has to ask them itself."""
        return self.body.reset_questions(children(frame)[RUN])


def passed_gates(frame: Frame) -> tuple[PassedGate, ...]:
    """List the gates before a state that are still to be asked."""
    gates = frame.get(FORK_GATES, ())
    assert isinstance(gates, list | tuple)
    return tuple(map(read_passed, gates))
