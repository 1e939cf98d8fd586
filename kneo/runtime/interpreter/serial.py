"""Nodes that run one child at a time: sequences, turns of several participants, loops and graphs.

Frames:
    sequence, turns: ``node``, ``index``, one child; of turns ``messages``, so far; ``input`` and ``before`` (the inputs of the current step
        and of the step before it) where a reviewer may send a step back, and ``visits`` (how often such steps were begun).
    loop: ``node``, ``input`` (the loop's), ``round``, and one child ``body``, or ``output`` and ``task`` during the review
        of a round; ``reviews`` counts the rejections.
    graph: ``node``, ``at`` (the current node), ``count`` (nodes begun), ``visits`` by node, one child; ``input`` and
        ``before`` (``at`` and ``input`` of the node before) where a reviewer may send a node back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from kneo.errors import Invalid
from kneo.function_context import ChatMessage, messages_as_json, read_messages
from kneo.records.run import RunError
from kneo.records.task import DecisionKind
from kneo.runtime.interpreter.gate import CompiledGate, effect_of, rejection
from kneo.runtime.interpreter.node import (
    Ask,
    Completed,
    DecisionContext,
    Failed,
    Frame,
    NodeEnd,
    Outcome,
    ProgramNode,
    Progress,
    RepeatRequested,
    RunEnded,
    TaskDecided,
    below,
    condition_failed,
    dropped,
    edited,
    kept,
    mapping,
    mismatch,
    number,
    rejected,
    stopped,
    with_child,
)
from kneo.runtime.interpreter.values import ReviewFeedback, Value, read_value
from kneo.spec.conditions import holds
from kneo.spec.models.human import Condition

MAX_CHAT_CHARS = 100_000
"""Characters of the messages of a group chat or handoff that a run keeps; the oldest are dropped first."""


@dataclass(frozen=True)
class Next:
    """The child that a node begins next, with the node's frame and the child's input."""

    frame: Frame
    child_key: str
    value: Value


class SerialNode(ProgramNode):
    """A node that runs one child at a time. Iterative, because children may end at once, any number in a row."""

    @abstractmethod
    def following(self, context: DecisionContext, frame: Frame, end: NodeEnd, location: str) -> Next | Progress:
        """Return the child that follows the one that ended, or how the node ends."""

    def advance(self, context: DecisionContext, step: Next | Progress, location: str) -> Progress:
        """Begin children until one of them does not end at once."""
        while isinstance(step, Next):
            node, inner = self.locate(step.frame, step.child_key, location)
            progress = node.enter(context, step.value, inner)
            match progress:
                case Completed() | Failed() | RepeatRequested():
                    step = self.following(context, step.frame, progress, location)
                case RunEnded():
                    return progress
                case _:
                    return with_child(step.frame, step.child_key, progress)
        return step

    def resume(self, context: DecisionContext, frame: Frame, _child_key: str, end: NodeEnd, location: str) -> Progress:
        return self.advance(context, self.following(context, dropped(frame, "children"), end, location), location)


def _repeated(value: object, repeat: RepeatRequested) -> Value:
    """Return a step's earlier input with the reviewer's feedback."""
    return replace(read_value(value), review=ReviewFeedback(previous_output=repeat.rejected, feedback=repeat.feedback))


@dataclass(frozen=True, kw_only=True)
class SequenceNode(SerialNode):
    children: tuple[ProgramNode, ...]

    def parts(self) -> Iterable[ProgramNode]:
        return self.children

    @property
    def length(self) -> int:
        return len(self.children)

    @property
    def may_repeat(self) -> bool:
        return bool(self.length) and self.at(0).may_repeat

    def at(self, index: int) -> ProgramNode:
        return self.children[index]

    def visit(self, frame: Frame, index: int) -> int:
        """Return the number of the visit to a step."""
        return int(mapping(frame, "visits").get(str(index), 1))

    def finish(self, value: Value) -> Completed | Failed:
        """Return the end after the last step."""
        return Completed(value=value)

    def enter(self, context: DecisionContext, value: Value, location: str) -> Progress:
        return self.advance(context, self._step(0, value, {}), location)

    def _step(self, index: int, value: Value, visits: Frame, before: object = None) -> Next | Progress:
        if index >= self.length:
            return self.finish(value)
        frame: dict[str, object] = {"node": self.path, "index": index}
        if visits:
            frame["visits"] = visits
        if before is not None and self.at(index).may_repeat:
            frame["before"] = before
        if index + 1 < self.length and self.at(index + 1).may_repeat:
            frame["input"] = value.as_json()
        return Next(frame, str(index), value)

    def locate(self, frame: Frame, child_key: str, location: str) -> tuple[ProgramNode, str]:
        node, visit = self.at(int(child_key)), self.visit(frame, int(child_key))
        inner = below(location, node.id)
        return node, (f"{inner}#{visit}" if visit > 1 else inner)

    def following(self, _context: DecisionContext, frame: Frame, end: NodeEnd, _location: str) -> Next | Progress:
        index, visits = number(frame, "index"), mapping(frame, "visits")
        match end:
            case Completed():
                return self._step(index + 1, end.value, visits, frame.get("input"))
            case RepeatRequested() if index > 0:
                used = visits.get(str(index), 1)
                if used > end.limit or "before" not in frame:
                    return stopped(end.error)
                counted = {**visits, str(index): used + 1, str(index - 1): visits.get(str(index - 1), 1) + 1}
                return self._step(index - 1, _repeated(frame["before"], end), counted)
            case _:
                return end


@dataclass(frozen=True, kw_only=True)
class TurnsNode(SequenceNode):
    """Participants that take turns, each on the result of the one before."""

    order: tuple[int, ...]
    """Positions in ``children``, one per turn of a round."""
    turns: int
    cut_short: bool = False
    """Whether a limit ends it before every participant had a turn; that is an error."""
    shares: bool = False
    """Whether each participant is given the messages of all; else it is given its own earlier ones."""

    @property
    def length(self) -> int:
        return self.turns if self.order else 0

    def at(self, index: int) -> ProgramNode:
        return self.children[self._position(index)]

    def _position(self, index: int) -> int:
        return self.order[index % len(self.order)]

    def visit(self, frame: Frame, index: int) -> int:
        position, turn = self._position(index), index % len(self.order)
        earlier = index // len(self.order) * self.order.count(position) + self.order[:turn].count(position)
        # Requested repetitions come on top: no two visits share a location.
        visits = mapping(frame, "visits").items()
        repetitions: int = sum(count - 1 for key, count in visits if self._position(int(key)) == position)
        return earlier + 1 + repetitions

    def enter(self, context: DecisionContext, value: Value, location: str) -> Progress:
        first = (ChatMessage("", value.text),) if self.shares else ()
        return self.advance(context, self._with_messages(self._step(0, value, {}), first), location)

    def following(self, context: DecisionContext, frame: Frame, end: NodeEnd, location: str) -> Next | Progress:
        messages = read_messages(frame.get("messages", ()))
        match end:
            case Completed() if _is_new(end.value):
                messages = _bounded((*messages, ChatMessage(self.at(number(frame, "index")).id, end.value.text)))
            case RepeatRequested():
                messages = messages[:-1]
        return self._with_messages(super().following(context, frame, end, location), messages)

    def _with_messages(self, step: Next | Progress, messages: tuple[ChatMessage, ...]) -> Next | Progress:
        """Give the next participant the messages before its turn."""
        if not isinstance(step, Next) or not messages:
            return step
        participant = self.at(number(step.frame, "index")).id
        shown = messages if self.shares else tuple(each for each in messages if each.participant == participant)
        return Next(
            {**step.frame, "messages": messages_as_json(messages)}, step.child_key, replace(step.value, messages=shown)
        )

    def finish(self, value: Value) -> Completed | Failed:
        if not self.cut_short:
            return Completed(value=replace(value, messages=()))
        message = f"{self.path or 'The workflow'} reached its max_iterations of {self.turns} before it was done."
        return Failed(error=RunError(type="max_iterations", message=message))


def _is_new(value: Value) -> bool:
    """Tell whether a participant wrote a message: one that was skipped, failed or approved passes on the text before it."""
    return value.status == "completed" and value.metadata.get("decision") not in {"approved", "rejected"}


def _bounded(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Return the task and the newest messages, as far as they fit."""
    length, first = sum(len(each.text) for each in messages), 0 if messages[0].participant else 1
    kept = list(messages)
    while length > MAX_CHAT_CHARS and len(kept) > first + 1:
        length -= len(kept.pop(first).text)
    return tuple(kept)


# ---- loops ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LoopNode(SerialNode):
    body: ProgramNode
    max_iterations: int
    until: Condition | None = None
    each: CompiledGate | None = None

    def parts(self) -> Iterable[ProgramNode]:
        return (self.body,)

    def own_gates(self) -> Iterable[tuple[CompiledGate, str]]:
        return [(self.each, "")] if self.each is not None else []

    def enter(self, context: DecisionContext, value: Value, location: str) -> Progress:
        return self.advance(context, self._round({"node": self.path, "input": value.as_json()}, 1, value), location)

    def _round(self, frame: Frame, turn: int, value: Value) -> Next:
        return Next({**dropped(frame, "output"), "round": turn}, "body", value)

    def locate(self, frame: Frame, _child_key: str, location: str) -> tuple[ProgramNode, str]:
        return self.body, f"{location}#{number(frame, 'round')}"

    def following(self, context: DecisionContext, frame: Frame, end: NodeEnd, location: str) -> Next | Progress:
        match end:
            case Completed():
                turn, was_rejected = number(frame, "round"), number(frame, "reviews") > 0
                here = f"{location}#{turn}"
                if self.each is not None and (
                    was_rejected or self.each.asks(end.value, here, context.sampling_seed, context.run)
                ):
                    return {**frame, "output": end.value.as_json()}
                return self._after_round(context, frame, end.value)
            case RepeatRequested():
                return stopped(end.error)
            case Failed():
                return end

    def _after_round(self, context: DecisionContext, frame: Frame, value: Value) -> Next | Completed | Failed:
        turn = number(frame, "round")
        try:
            done = self.until is not None and holds(self.until, value.facts(context.run))
        except Invalid as error:
            return condition_failed(self.path, error)
        return Completed(value=value) if done or turn >= self.max_iterations else self._round(frame, turn + 1, value)

    def pending(self, frame: Frame, location: str) -> Ask | None:
        if self.each is None or "output" not in frame:
            return None
        here = f"{location}#{number(frame, 'round')}"
        return Ask(
            ticket=f"{here}:each",
            path=self.path,
            step_id=self.id,
            key=self.each.key(here),
            gate=self.each,
            subject=read_value(frame["output"]).as_subject(),
            facts={"iteration": number(frame, "round"), "max_iterations": self.max_iterations},
        )

    def take(self, context: DecisionContext, frame: Frame, outcome: Outcome, location: str) -> Progress:
        if not isinstance(outcome, TaskDecided) or self.each is None:
            raise mismatch(location, outcome)
        decision, output, turn = outcome.decision, read_value(frame["output"]), number(frame, "round")
        here = f"{location}#{turn}"
        if decision.kind is DecisionKind.APPROVED:
            return Completed(value=output)
        if decision.kind is DecisionKind.EDITED:
            return Completed(value=edited(output, decision))
        effect = effect_of(self.each, decision)
        if effect == "continue":
            return self.advance(context, self._after_round(context, frame, output), location)
        if effect != "retry":
            return rejected(self.each, decision, read_value(frame["input"]), here)
        reviews = number(frame, "reviews")
        if turn >= self.max_iterations or reviews >= self.each.max_retries:
            return stopped(rejection(here, decision))
        review = ReviewFeedback(previous_output=output.as_subject().text, feedback=decision.reason)
        again = self._round({**frame, "reviews": reviews + 1}, turn + 1, replace(output, review=review))
        return self.advance(context, again, location)


# ---- graphs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GraphEdge:
    """An edge to a node; without a condition it is always taken."""

    target: str
    condition: Condition | None


@dataclass(frozen=True, kw_only=True)
class GraphWorkflowNode(SerialNode):
    start: str
    nodes: Mapping[str, ProgramNode]
    edges: Mapping[str, tuple[GraphEdge, ...]]
    max_steps: int

    def parts(self) -> Iterable[ProgramNode]:
        return self.nodes.values()

    @property
    def may_repeat(self) -> bool:
        return self.nodes[self.start].may_repeat

    def enter(self, context: DecisionContext, value: Value, location: str) -> Progress:
        return self.advance(context, self._visit({"node": self.path}, self.start, value), location)

    def _visit(self, frame: Frame, at: str, value: Value) -> Next | Failed:
        count, visits = number(frame, "count") + 1, mapping(frame, "visits")
        if count > self.max_steps:
            name = self.path or "The graph"
            message = f"{name} reached its max_steps of {self.max_steps} and would go on to {at}."
            return Failed(error=RunError(type="max_iterations", message=message))
        frame = {**frame, "at": at, "count": count, "visits": {**visits, at: visits.get(at, 0) + 1}}
        # Inputs are kept only where a reviewer may request a repetition.
        if any(node.may_repeat for node in self.nodes.values()):
            frame = {**frame, "input": value.as_json()}
        return Next(frame, at, value)

    def locate(self, frame: Frame, child_key: str, location: str) -> tuple[ProgramNode, str]:
        visit, inner = mapping(frame, "visits").get(child_key, 1), below(location, child_key)
        return self.nodes[child_key], (f"{inner}#{visit}" if visit > 1 else inner)

    def following(self, context: DecisionContext, frame: Frame, end: NodeEnd, _location: str) -> Next | Progress:
        at = frame["at"]
        assert isinstance(at, str)
        match end:
            case Completed():
                return self._after(context, frame, at, end.value)
            case RepeatRequested() if mapping(frame, "before"):
                before = mapping(frame, "before")
                if mapping(frame, "visits").get(at, 1) > end.limit:
                    return stopped(end.error)
                return self._visit(
                    kept(frame, "node", "count", "visits"), before["at"], _repeated(before["input"], end)
                )
            case _:
                return end

    def _after(self, context: DecisionContext, frame: Frame, at: str, value: Value) -> Next | Completed | Failed:
        try:
            target = next(
                (
                    edge.target
                    for edge in self.edges.get(at, ())
                    if not edge.condition or holds(edge.condition, value.facts(context.run))
                ),
                None,
            )
        except Invalid as error:
            return condition_failed(self.path, error)
        if target is None:
            return Completed(value=value)
        if "input" in frame:
            frame = {**frame, "before": {"at": at, "input": frame["input"]}}
        return self._visit(frame, target, value)
