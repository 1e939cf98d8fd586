"""Gates that a run asks before it goes on from a point behind them: a fork, or a failed run that is continued.

Frame: ``fork_gates`` (the gates that are still to be asked, in order), ``ticket`` (the step whose input was changed,
where it was), ``task`` while the first of them is asked, and one child, ``run``: the state that goes on afterwards.

Each gate is a yes-or-no question to the people whom the gate names: may this flow on? No answer but yes goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kneo.records.task import REPLAYED, DecisionKind
from kneo.runtime.interpreter.gate import CompiledGate, rejection
from kneo.runtime.interpreter.node import (
    Ask,
    Frame,
    GateRecheck,
    Outcome,
    ProgramNode,
    RunEnded,
    Stale,
    TaskDecided,
    TaskOpened,
    children,
    mismatch,
    stopped,
)
from kneo.runtime.interpreter.values import Value

FORK_GATES = "fork_gates"

RUN = "run"
"""The slot of the state that goes on."""

CAREFUL_TIMEOUTS = frozenset({"fail", "cancel", "reject", "escalate"})
"""What a deadline may do to such a question; in place of anything else it rejects."""

EDITABLE = frozenset({"step", "before", "after", "each"})
"""Positions at which a reviewer may put other text in the place of a changed input."""

GateIndex = Mapping[tuple[str, str, str], CompiledGate]


@dataclass(frozen=True, kw_only=True)
class PassedGate:
    """One gate that was passed before the point, as a frame keeps it."""

    path: str
    spot: str
    step_id: str
    key: str
    subject: str
    """What the people are asked about: what flows on from the gate."""
    human: str = ""
    """Which of a step's humans, where a function asked in its middle."""
    source: str | None = None
    """The run in which it was answered; its answer may count again."""
    prompt: str | None = None
    options: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    """The options that were chosen then."""
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str, str]:
        return self.path, self.spot, self.human

    def as_json(self) -> dict[str, object]:
        values = {name: value for name, value in self.__dict__.items() if value not in (None, "", (), {})}
        for name in ("options", "chosen"):
            if name in values:
                values[name] = list(values[name])
        return {"subject": "", **values}


def read_passed(kept: object) -> PassedGate:
    """Read what ``as_json`` wrote."""
    assert isinstance(kept, Mapping)
    return PassedGate(**{**kept, "options": tuple(kept.get("options", ())), "chosen": tuple(kept.get("chosen", ()))})


def index_gates(root: ProgramNode) -> GateIndex:
    """Find every gate of a program by the path of its step, its spot there, and the human whom a function asks."""
    found: dict[tuple[str, str, str], CompiledGate] = {}
    ahead = [root]
    while ahead:
        node = ahead.pop()
        for gate, human in node.own_gates():
            found.setdefault((node.path, gate.spot, human), gate)
        ahead.extend(node.parts())
    return found


def behind_gates(state: Frame, gates: Sequence[PassedGate], *, ticket: str | None = None) -> Frame:
    """Put gates before a state."""
    if not gates:
        return state
    frame: Frame = {"node": "", FORK_GATES: [gate.as_json() for gate in gates], "children": {RUN: state}}
    return {**frame, "ticket": ticket} if ticket is not None else frame


@dataclass(frozen=True, kw_only=True)
class ForkGates:
    """Interprets a state that ``behind_gates`` made.

    Attributes:
        body: The program's root, which goes on afterwards.
        gates: The program's gates.
    """

    body: ProgramNode
    gates: GateIndex

    def ready(self, frame: Frame) -> Iterator[Ask]:
        if frame.get("task") is None:
            yield self._ask(frame)

    def waiting(self, frame: Frame) -> Iterator[tuple[str, Ask]]:
        task = frame.get("task")
        if isinstance(task, str):
            yield task, self._ask(frame)

    def settle(self, frame: Frame, ticket: str, outcome: Outcome) -> Frame | RunEnded:
        """Take the outcome of the question.

        Raises:
            Stale: it is not what is asked now.
        """
        ask = self._ask(frame)
        if ask.ticket != ticket:
            raise Stale(ticket)
        match outcome:
            case TaskOpened():
                return {**frame, "task": outcome.task_id}
            case TaskDecided():
                return self._answered(frame, ask, outcome)
            case _:
                raise mismatch(ask.path, outcome)

    def _answered(self, frame: Frame, ask: Ask, answer: TaskDecided) -> Frame | RunEnded:
        decision, gate = answer.decision, passed_gates(frame)[0]
        match decision.kind:
            case _ if decision.by == REPLAYED:
                return self._past(frame)
            case DecisionKind.APPROVED:
                return self._past(frame)
            case DecisionKind.SELECTED if _options(decision.selected_options, decision.selected_option) == gate.chosen:
                return self._past(frame)
            case DecisionKind.EDITED if DecisionKind.EDITED in ask.gate.decisions:
                return self._past(frame, edited=decision.content or "")
            case _:
                return stopped(rejection(ask.path, decision))

    def _past(self, frame: Frame, *, edited: str | None = None) -> Frame:
        inner, ticket, left = children(frame)[RUN], frame.get("ticket"), passed_gates(frame)[1:]
        if edited is not None and isinstance(ticket, str):
            inner = self.body.given(inner, ticket, edited, "")
            left = tuple(replace(gate, subject=edited) for gate in left)
        return behind_gates(inner, left, ticket=ticket if isinstance(ticket, str) else None)

    def _ask(self, frame: Frame) -> Ask:
        gates = passed_gates(frame)
        asked = gates[0]
        return Ask(
            # A ticket names one question of a run; a run may come by the same gate again later.
            ticket=f"{asked.key}:fork{len(gates)}:{asked.source or ''}",
            path=asked.path,
            step_id=asked.step_id,
            key=asked.key,
            gate=self._gate(asked, changed="ticket" in frame),
            subject=Value(text=asked.subject),
            options=asked.options or None,
            prompt=asked.prompt,
            facts=asked.facts,
            human=asked.human or None,
            passed=GateRecheck(source=asked.source),
        )

    def _gate(self, asked: PassedGate, *, changed: bool) -> CompiledGate:
        gate = self.gates[asked.place]
        decisions = [DecisionKind.APPROVED, DecisionKind.REJECTED]
        if asked.chosen:
            decisions.append(DecisionKind.SELECTED)
        if changed and gate.position in EDITABLE and DecisionKind.EDITED in gate.decisions:
            decisions.append(DecisionKind.EDITED)
        careful = gate.human.on_timeout in CAREFUL_TIMEOUTS
        update: dict[str, object] = {"fields": (), "answer_schema": None, "decisions": None, "default_option": None}
        if not careful:
            update["on_timeout"] = "reject"
        human = gate.human.model_copy(update=update)
        return replace(gate, human=human, decisions=tuple(decisions), on_reject="stop")

    # ---- for those who look at it from outside ------------------------------------------------------------------

    def revived(self, frame: Frame) -> Frame:
        inner = self.body.revived(children(frame)[RUN])
        return {**frame, "children": {RUN: inner}}

    def given(self, frame: Frame, ticket: str, text: str) -> Frame:
        return {**frame, "children": {RUN: self.body.given(children(frame)[RUN], ticket, text, "")}}

    def unasked(self, frame: Frame) -> Frame:
        """Return the state behind the gates; whoever goes on with it has to ask them itself."""
        return self.body.unasked(children(frame)[RUN])


def passed_gates(frame: Frame) -> tuple[PassedGate, ...]:
    """List the gates that a state still has to ask."""
    found = frame.get(FORK_GATES, ())
    assert isinstance(found, list | tuple)
    return tuple(map(read_passed, found))


def _options(several: tuple[str, ...], one: str | None) -> tuple[str, ...]:
    return several or ((one,) if one else ())
