"""Again and again, until it is good or the rounds are used up.

Frame: ``node``, ``input`` (what the loop was given), ``round``, and either one child ``body`` or, while a person looks
at a round, ``output`` and ``task``; ``reviews`` counts what they rejected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kneo.errors import Invalid
from kneo.records.task import DecisionKind
from kneo.runtime.interpreter.answers import edited, rejected
from kneo.runtime.interpreter.branch import condition_failed
from kneo.runtime.interpreter.gate import CompiledGate, effect_of, feedback_of, rejection
from kneo.runtime.interpreter.node import (
    Ask,
    Completed,
    DecisionContext,
    Failed,
    Frame,
    Outcome,
    ProgramNode,
    Progress,
    RepeatRequested,
    RunEnded,
    TaskDecided,
    mismatch,
    number,
    stopped,
    with_child,
)
from kneo.runtime.interpreter.values import ReviewFeedback, Value, read_value
from kneo.spec.gates import holds
from kneo.spec.models.human import Condition


@dataclass(frozen=True, kw_only=True)
class LoopNode(ProgramNode):
    body: ProgramNode
    max_iterations: int
    until: Condition | None = None
    each: CompiledGate | None = None

    def parts(self) -> Iterable[ProgramNode]:
        return (self.body,)

    def own_gates(self) -> Iterable[tuple[CompiledGate, str]]:
        return [(self.each, "")] if self.each is not None else []

    def enter(self, context: DecisionContext, value: Value, place: str) -> Progress:
        return self._go(context, {"node": self.path, "input": value.as_json()}, 1, value, place)

    def _go(self, context: DecisionContext, frame: Frame, turn: int, value: Value, place: str) -> Progress:
        while True:
            frame = {key: kept for key, kept in frame.items() if key != "output"} | {"round": turn}
            node, inner = self.locate(frame, "body", place)
            progress = node.enter(context, value, inner)
            match progress:
                case Completed():
                    over = self._over(context, frame, progress.value, place)
                    if over is not None:
                        return over
                    turn, value = turn + 1, progress.value
                case RunEnded() | Failed():
                    return progress
                case RepeatRequested():
                    return stopped(progress.error)
                case _:
                    return with_child(frame, "body", progress)

    def _over(self, context: DecisionContext, frame: Frame, value: Value, place: str) -> Progress | None:
        """Say how it stands after a round; ``None`` means one more."""
        turn = number(frame, "round")
        sent_back = number(frame, "reviews") > 0
        if self.each is not None and (sent_back or self.each.asks(value, f"{place}#{turn}", context.case)):
            return {**frame, "output": value.as_json()}
        return self._unreviewed(value, turn)

    def _unreviewed(self, value: Value, turn: int) -> Progress | None:
        """Return the end of the loop after a round, or ``None`` for one more round."""
        try:
            good = self.until is not None and holds(self.until, value.facts)
        except Invalid as error:
            return condition_failed(self.path, error)
        return Completed(value=value) if good or turn >= self.max_iterations else None

    def locate(self, frame: Frame, _slot: str, place: str) -> tuple[ProgramNode, str]:
        return self.body, f"{place}#{number(frame, 'round')}"

    def resume(
        self,
        context: DecisionContext,
        frame: Frame,
        _slot: str,
        progress: Completed | Failed | RepeatRequested,
        place: str,
    ) -> Progress:
        match progress:
            case Completed():
                frame = {key: kept for key, kept in frame.items() if key != "children"}
                over = self._over(context, frame, progress.value, place)
                if over is not None:
                    return over
                return self._go(context, frame, number(frame, "round") + 1, progress.value, place)
            case RepeatRequested():
                return stopped(progress.error)
            case Failed():
                return progress

    def pending(self, frame: Frame, place: str) -> Ask | None:
        if self.each is None or "output" not in frame:
            return None
        here = f"{place}#{number(frame, 'round')}"
        return Ask(
            ticket=f"{here}:each",
            path=self.path,
            step_id=self.id,
            key=self.each.key(here),
            gate=self.each,
            subject=read_value(frame["output"]),
            facts={"iteration": number(frame, "round"), "max_iterations": self.max_iterations},
        )

    def take(self, context: DecisionContext, frame: Frame, outcome: Outcome, place: str) -> Progress:
        if not isinstance(outcome, TaskDecided) or self.each is None:
            raise mismatch(place, outcome)
        decision, output, turn = outcome.decision, read_value(frame["output"]), number(frame, "round")
        here = f"{place}#{turn}"
        if decision.kind is DecisionKind.APPROVED:
            return Completed(value=output)
        if decision.kind is DecisionKind.EDITED:
            return Completed(value=edited(output, decision))
        effect = effect_of(self.each, decision)
        if effect == "continue":
            return self._unreviewed(output, turn) or self._go(context, frame, turn + 1, output, place)
        if effect != "retry":
            return rejected(self.each, decision, read_value(frame["input"]), here)
        reviews = number(frame, "reviews")
        if turn >= self.max_iterations or reviews >= self.each.max_retries:
            return stopped(rejection(here, decision))
        review = ReviewFeedback(previous_output=output.text, feedback=feedback_of(decision))
        return self._go(context, {**frame, "reviews": reviews + 1}, turn + 1, replace(output, review=review), place)
