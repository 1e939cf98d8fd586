"""One way or the other. Frame: ``node`` and one child, ``then`` or ``else``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kneo.errors import Invalid
from kneo.records.run import RunError
from kneo.records.task import DecisionKind
from kneo.runtime.interpreter.answers import rejected
from kneo.runtime.interpreter.gate import CompiledGate, rejection
from kneo.runtime.interpreter.node import (
    Activity,
    Ask,
    Completed,
    DecisionContext,
    Execute,
    Failed,
    Frame,
    Outcome,
    ProgramNode,
    Progress,
    RepeatRequested,
    RunEnded,
    StepFailed,
    Succeeded,
    TaskDecided,
    mismatch,
    number,
    stopped,
    with_child,
)
from kneo.runtime.interpreter.values import Value, read_value
from kneo.spec.gates import holds
from kneo.spec.models.human import Condition

THEN, ELSE = "then", "else"


def condition_failed(path: str, error: Invalid) -> Failed:
    return Failed(error=RunError(type=error.code, message=f"{path}: {error.message}"))


@dataclass(frozen=True, kw_only=True)
class BranchNode(ProgramNode):
    when: Condition | None
    """``None`` where a person decides before it begins."""
    then: ProgramNode
    otherwise: ProgramNode

    def parts(self) -> Iterable[ProgramNode]:
        return self.then, self.otherwise

    @property
    def may_repeat(self) -> bool:
        return self.then.may_repeat or self.otherwise.may_repeat

    def enter(self, context: DecisionContext, value: Value, place: str) -> Progress:
        if self.when is None:
            msg = "nobody decided and there is no condition"
            return condition_failed(self.path, Invalid(msg, code="condition_error"))
        try:
            chosen = THEN if holds(self.when, value.facts) else ELSE
        except Invalid as error:
            return condition_failed(self.path, error)
        return self.enter_chosen(context, value, place, chosen)

    def enter_chosen(self, context: DecisionContext, value: Value, place: str, chosen: str) -> Progress:
        node, inner = self.locate({}, chosen, place)
        progress = node.enter(context, value, inner)
        if isinstance(progress, Completed | Failed | RepeatRequested | RunEnded):
            return progress
        return with_child({"node": self.path}, chosen, progress)

    def locate(self, _frame: Frame, slot: str, place: str) -> tuple[ProgramNode, str]:
        return (self.then if slot == THEN else self.otherwise), place

    def resume(
        self,
        _moment: DecisionContext,
        _frame: Frame,
        _slot: str,
        progress: Completed | Failed | RepeatRequested,
        _place: str,
    ) -> Progress:
        return progress


@dataclass(frozen=True, kw_only=True)
class Selector:
    """What chooses where nobody is asked: a function, or the first condition that holds, or the default."""

    function: Activity | None = None
    conditions: tuple[tuple[Condition, str], ...] = ()
    default: str | None = None


@dataclass(frozen=True, kw_only=True)
class RouterNode(ProgramNode):
    choices: Mapping[str, ProgramNode]
    descriptions: Mapping[str, str | None]
    selector: Selector | None
    route: CompiledGate
    asks_first: bool
    """Whether the spec has people choose; else they are asked only when a result was rejected, to go another way."""

    def parts(self) -> Iterable[ProgramNode]:
        return self.choices.values()

    def own_gates(self) -> Iterable[tuple[CompiledGate, str]]:
        return [(self.route, "")]

    @property
    def may_repeat(self) -> bool:
        return any(node.may_repeat for node in self.choices.values())

    @property
    def offered(self) -> tuple[str, ...]:
        """What people may choose: every way, or those that the gate leaves them."""
        left = tuple(name for name in self.route.human.options or () if name in self.choices)
        return left or tuple(self.choices)

    def enter(self, context: DecisionContext, value: Value, place: str) -> Progress:
        frame: Frame = {"node": self.path, "input": value.as_json()}
        wanted = self.asks_first and self.route.asks(value, place, context.case)
        if wanted or self.selector is None or value.review is not None:
            return {**frame, "phase": "route"}
        if self.selector.function is not None:
            return {**frame, "phase": "select"}
        try:
            chosen = next(
                (name for when, name in self.selector.conditions if holds(when, value.facts)), self.selector.default
            )
        except Invalid as error:
            return condition_failed(self.path, error)
        return self._take_ways(context, frame, (chosen,), place)

    def _take_ways(self, context: DecisionContext, frame: Frame, ways: Sequence[str | None], place: str) -> Progress:
        """Take one way, or several one after the other, each given what the one before made."""
        chosen, left = ways[0], list(ways[1:])
        if chosen is None or chosen not in self.choices:
            what = "No condition holds and there is no default" if chosen is None else f"{chosen[:200]!r} is no choice"
            message = f"{self.path}: {what}; the choices are {', '.join(self.choices)}."
            return Failed(error=RunError(type="unknown_choice", message=message))
        value = read_value(frame["input"])
        here: Frame = {"node": self.path, "input": frame["input"], "phase": "run"}
        if left or number(frame, "taken"):
            here = {**here, "left": left, "taken": number(frame, "taken")}
        node, inner = self.locate(here, chosen, place)
        progress = node.enter(context, value, inner)
        match progress:
            case Completed() | Failed() | RepeatRequested():
                return self.resume(context, here, chosen, progress, place)
            case RunEnded():
                return progress
            case _:
                return with_child(here, chosen, progress)

    def locate(self, frame: Frame, slot: str, place: str) -> tuple[ProgramNode, str]:
        taken = number(frame, "taken")
        return self.choices[slot], (f"{place}:choice{taken + 1}" if taken else place)

    def resume(
        self,
        context: DecisionContext,
        frame: Frame,
        _slot: str,
        progress: Completed | Failed | RepeatRequested,
        place: str,
    ) -> Progress:
        left = frame.get("left")
        if not isinstance(progress, Completed) or not isinstance(left, list) or not left:
            return progress
        following = {**frame, "input": progress.value.as_json(), "taken": number(frame, "taken") + 1}
        return self._take_ways(context, following, left, place)

    def given(self, frame: Frame, ticket: str, text: str, place: str) -> Frame:
        own = self.pending(frame, place)
        if own is not None and own.ticket == ticket:
            return {**frame, "input": replace(read_value(frame["input"]), text=text).as_json()}
        return super().given(frame, ticket, text, place)

    def pending(self, frame: Frame, place: str) -> Execute | Ask | None:
        value = read_value(frame["input"])
        if frame["phase"] == "select" and self.selector is not None and self.selector.function is not None:
            return Execute(ticket=f"{place}:select", activity=self.selector.function, value=value, attempt=0)
        if frame["phase"] != "route":
            return None
        return Ask(
            ticket=f"{place}:route",
            path=self.path,
            step_id=self.id,
            key=self.route.key(place),
            gate=self.route,
            subject=value,
            options=self.offered,
            facts={"choices": dict(self.descriptions)},
        )

    def take(self, context: DecisionContext, frame: Frame, outcome: Outcome, place: str) -> Progress:
        match outcome:
            case Succeeded():
                return self._take_ways(context, frame, (outcome.text.strip(),), place)
            case StepFailed():
                return Failed(error=outcome.error, kept=frame)
            case TaskDecided() if outcome.decision.kind is DecisionKind.SELECTED:
                ways = outcome.decision.selected_options or (outcome.decision.selected_option,)
                return self._take_ways(context, frame, ways, place)
            case TaskDecided() if outcome.decision.kind is DecisionKind.REJECTED:
                value = replace(read_value(frame["input"]), review=None)
                return rejected(self.route, outcome.decision, value, place)
            case TaskDecided():
                return stopped(rejection(place, outcome.decision))
            case _:
                raise mismatch(place, outcome)
