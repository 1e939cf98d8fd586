"""Nodes with several ways: a branch by its condition, a router by a function, conditions or a person, and parallel children.

Frames:
    branch: ``node`` and one child, ``then`` or ``else``.
    router: ``node``, ``input``, ``phase`` (``select``: a function or an agent chooses; ``route``: a person chooses; ``run``),
        ``task``, and one child: ``select``, the agent that chooses, or the choice by its name; ``left``, the further choices of
        a person, and ``taken``, the number of those before.
    parallel: ``node``, ``input``, ``children`` by their number, ``done`` (values) and ``failed`` (errors) of those that ended,
        and ``stuck``, the frames of those that failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kneo.errors import Invalid
from kneo.records.run import RunError
from kneo.records.task import DecisionKind
from kneo.runtime.interpreter.gate import CompiledGate, rejection
from kneo.runtime.interpreter.node import (
    Action,
    Activity,
    Ask,
    Completed,
    DecisionContext,
    Execute,
    Failed,
    Frame,
    NodeEnd,
    Outcome,
    ProgramNode,
    Progress,
    RepeatRequested,
    RunEnded,
    StepFailed,
    Succeeded,
    TaskDecided,
    below,
    children,
    condition_failed,
    mapping,
    mismatch,
    number,
    rejected,
    stopped,
    with_child,
)
from kneo.runtime.interpreter.serial import Next, SerialNode
from kneo.runtime.interpreter.values import Value, read_value
from kneo.spec.conditions import holds
from kneo.spec.models.human import Condition

THEN, ELSE = "then", "else"
SELECT = "select"

_MISSING = object()


@dataclass(frozen=True, kw_only=True)
class BranchNode(SerialNode):
    when: Condition | None
    """``None`` where a person decides before the branch begins."""
    then: ProgramNode
    otherwise: ProgramNode

    def parts(self) -> Iterable[ProgramNode]:
        return self.then, self.otherwise

    @property
    def may_repeat(self) -> bool:
        return self.then.may_repeat or self.otherwise.may_repeat

    def enter(self, context: DecisionContext, value: Value, location: str) -> Progress:
        if self.when is None:
            msg = "there is neither a decision nor a condition"
            return condition_failed(self.path, Invalid(msg, code="condition_error"))
        try:
            chosen = THEN if holds(self.when, value.facts(context.run)) else ELSE
        except Invalid as error:
            return condition_failed(self.path, error)
        return self.enter_chosen(context, value, location, chosen)

    def enter_chosen(self, context: DecisionContext, value: Value, location: str, chosen: str) -> Progress:
        return self.advance(context, Next({"node": self.path}, chosen, value), location)

    def locate(self, _frame: Frame, child_key: str, location: str) -> tuple[ProgramNode, str]:
        return (self.then if child_key == THEN else self.otherwise), location

    def following(self, _context: DecisionContext, _frame: Frame, end: NodeEnd, _location: str) -> NodeEnd:
        return end


@dataclass(frozen=True, kw_only=True)
class Selector:
    """The automatic choice of a router: a function or an agent, or the first condition that holds, or the default."""

    function: Activity | None = None
    agent: ProgramNode | None = None
    """A step, so that it can be postponed and can wait for answers."""
    conditions: tuple[tuple[Condition, str], ...] = ()
    default: str | None = None


@dataclass(frozen=True, kw_only=True)
class RouterNode(SerialNode):
    choices: Mapping[str, ProgramNode]
    descriptions: Mapping[str, str | None]
    selector: Selector | None
    route: CompiledGate
    asks_first: bool
    """Whether the spec has people choose; else they choose only after a result was sent back, to go another way."""

    def parts(self) -> Iterable[ProgramNode]:
        selecting = self.selector.agent if self.selector is not None else None
        return (*self.choices.values(), *((selecting,) if selecting is not None else ()))

    def own_gates(self) -> Iterable[tuple[CompiledGate, str]]:
        return [(self.route, "")]

    @property
    def may_repeat(self) -> bool:
        return any(node.may_repeat for node in self.choices.values())

    @property
    def offered(self) -> tuple[str, ...]:
        """The options of a person: the gate's own ones that exist, else every choice."""
        return tuple(name for name in self.route.human.options or () if name in self.choices) or tuple(self.choices)

    def enter(self, context: DecisionContext, value: Value, location: str) -> Progress:
        frame: Frame = {"node": self.path, "input": value.as_json()}
        is_asked = self.asks_first and self.route.asks(value, location, context.sampling_seed, context.run)
        if is_asked or self.selector is None or value.review is not None:
            return {**frame, "phase": "route"}
        if self.selector.function is not None:
            return {**frame, "phase": "select"}
        if self.selector.agent is not None:
            return self.advance(context, Next({**frame, "phase": "select"}, SELECT, value), location)
        try:
            chosen = next(
                (name for when, name in self.selector.conditions if holds(when, value.facts(context.run))),
                self.selector.default,
            )
        except Invalid as error:
            return condition_failed(self.path, error)
        return self.advance(context, self._choose(frame, (chosen,)), location)

    def _choose(self, frame: Frame, choices: Sequence[str | None]) -> Next | Failed:
        """Begin the first of the choices; the others follow, each on the result of the one before."""
        chosen, left = choices[0], list(choices[1:])
        if chosen is None or chosen not in self.choices:
            what = "No condition holds and there is no default" if chosen is None else f"{chosen[:200]!r} is no choice"
            message = f"{self.path}: {what}; the choices are {', '.join(self.choices)}."
            return Failed(error=RunError(type="unknown_choice", message=message))
        here: Frame = {"node": self.path, "input": frame["input"], "phase": "run"}
        if left or number(frame, "taken"):
            here = {**here, "left": left, "taken": number(frame, "taken")}
        return Next(here, chosen, read_value(frame["input"]))

    def locate(self, frame: Frame, child_key: str, location: str) -> tuple[ProgramNode, str]:
        if frame["phase"] == "select":
            assert self.selector is not None
            assert self.selector.agent is not None
            return self.selector.agent, f"{location}:{SELECT}"
        taken = number(frame, "taken")
        return self.choices[child_key], (f"{location}:choice{taken + 1}" if taken else location)

    def following(self, _context: DecisionContext, frame: Frame, end: NodeEnd, _location: str) -> Next | NodeEnd:
        if frame["phase"] == "select" and isinstance(end, Completed):
            return self._choose(frame, (end.value.text.strip(),))
        left = frame.get("left")
        if not isinstance(end, Completed) or not isinstance(left, list) or not left:
            return end
        return self._choose({**frame, "input": end.value.as_json(), "taken": number(frame, "taken") + 1}, left)

    def pending(self, frame: Frame, location: str) -> Execute | Ask | None:
        value = read_value(frame["input"])
        if frame["phase"] == "select" and self.selector is not None and self.selector.function is not None:
            return Execute(ticket=f"{location}:{SELECT}", activity=self.selector.function, value=value, attempt=0)
        if frame["phase"] != "route":
            return None
        return Ask(
            ticket=f"{location}:route",
            path=self.path,
            step_id=self.id,
            key=self.route.key(location),
            gate=self.route,
            subject=value.as_subject(),
            options=self.offered,
            facts={"choices": dict(self.descriptions)},
        )

    def take(self, context: DecisionContext, frame: Frame, outcome: Outcome, location: str) -> Progress:
        match outcome:
            case Succeeded():
                return self.advance(context, self._choose(frame, (outcome.text.strip(),)), location)
            case StepFailed():
                return Failed(error=outcome.error, kept=frame)
            case TaskDecided(decision=decision) if decision.kind is DecisionKind.SELECTED:
                choices = decision.selected_options or (decision.selected_option,)
                return self.advance(context, self._choose(frame, choices), location)
            case TaskDecided(decision=decision) if decision.kind is DecisionKind.REJECTED:
                return rejected(self.route, decision, replace(read_value(frame["input"]), review=None), location)
            case TaskDecided():
                return stopped(rejection(location, outcome.decision))
            case _:
                raise mismatch(location, outcome)


@dataclass(frozen=True, kw_only=True)
class ParallelNode(ProgramNode):
    """Children that run at the same time, on the same input.

    When a child fails, the others continue as far as they can without opening tasks; then the node fails with the first failure
    in declaration order. Which steps run and how the node ends does not depend on which child is quicker.
    """

    children: tuple[ProgramNode, ...]

    def parts(self) -> Iterable[ProgramNode]:
        return self.children

    def enter(self, context: DecisionContext, value: Value, location: str) -> Progress:
        frame: Frame = {"node": self.path, "input": value.as_json(), "children": {}, "done": {}}
        for child_key in map(str, range(len(self.children))):
            node, inner = self.locate(frame, child_key, location)
            progress = node.enter(context, value, inner)
            if isinstance(progress, RunEnded):
                return progress
            if isinstance(progress, RepeatRequested):
                return stopped(progress.error)
            frame = self._with_progress(frame, child_key, progress)
        return self.changed(context, frame, location)

    def locate(self, _frame: Frame, child_key: str, location: str) -> tuple[ProgramNode, str]:
        node = self.children[int(child_key)]
        return node, below(location, node.id)

    def resume(self, context: DecisionContext, frame: Frame, child_key: str, end: NodeEnd, location: str) -> Progress:
        if isinstance(end, RepeatRequested):
            return stopped(end.error)
        return self.changed(context, self._with_progress(frame, child_key, end), location)

    @staticmethod
    def _with_progress(frame: Frame, child_key: str, progress: Frame | Completed | Failed) -> Frame:
        match progress:
            case Completed():
                return {**frame, "done": {**mapping(frame, "done"), child_key: progress.value.as_json()}}
            case Failed():
                error = {"type": progress.error.type, "message": progress.error.message}
                stuck = {child_key: progress.kept} if progress.kept is not None else {}
                return {
                    **frame,
                    "failed": {**mapping(frame, "failed"), child_key: error},
                    "stuck": {**mapping(frame, "stuck"), **stuck},
                }
            case _:
                return with_child(frame, child_key, progress)

    def ready(self, frame: Frame, location: str) -> Iterator[Action]:
        for action in super().ready(frame, location):
            if isinstance(action, Execute) or not mapping(frame, "failed"):
                yield action

    def changed(self, _context: DecisionContext, frame: Frame, location: str) -> Progress:
        failed = mapping(frame, "failed")
        if failed and not any(True for _ in self.ready(frame, location)):
            can_continue = failed.keys() == mapping(frame, "stuck").keys()
            error = RunError(**failed[min(failed, key=int)])
            return Failed(error=error, kept=frame if can_continue else None)
        if children(frame):
            return frame
        return Completed(value=self._joined(read_value(frame["input"]), mapping(frame, "done")))

    def prepare_retry(self, frame: Frame) -> Frame:
        again = {**children(frame), **mapping(frame, "stuck")}
        return super().prepare_retry({**frame, "children": again, "failed": {}, "stuck": {}})

    def _joined(self, value: Value, done: Mapping[str, object]) -> Value:
        """Merge the children's values in declaration order; the text is that of the last child that was not skipped."""
        text, variables, filled, outputs = value.text, dict(value.variables), dict(value.filled), {}
        for index, node in enumerate(self.children):
            result = read_value(done[str(index)])
            variables |= {name: saved for name, saved in result.variables.items() if value.variables.get(name) != saved}
            filled |= {name: each for name, each in result.filled.items() if value.filled.get(name, _MISSING) != each}
            if result.status != "skipped":
                text = outputs[node.id] = result.text
        metadata = {"node_kind": "parallel", "node_id": self.id}
        passed = replace(value, variables=variables, filled=filled, outputs=outputs)
        return replace(passed, text=text, status="completed", metadata=metadata)
