"""One after the other: sequences, handoffs and group chats.

Frame: ``node``, ``index``, one child; ``input`` and ``before`` (what the current step and the one before it were given)
where a person may want a step repeated, and ``visits`` (how often such steps were begun).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from kneo.records.run import RunError
from kneo.runtime.interpreter.node import (
    Completed,
    DecisionContext,
    Failed,
    Frame,
    ProgramNode,
    Progress,
    RepeatRequested,
    RunEnded,
    below,
    number,
    stopped,
    with_child,
)
from kneo.runtime.interpreter.values import ReviewFeedback, Value, read_value


def repeated(value: Value, again: RepeatRequested) -> Value:
    """Give a step what it was given before, and what was said about its result."""
    return replace(value, review=ReviewFeedback(previous_output=again.rejected, feedback=again.feedback))


@dataclass(frozen=True, kw_only=True)
class SequenceNode(ProgramNode):
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
        """Count which visit to a step this is."""
        return _visits(frame).get(str(index), 1)

    def finish(self, value: Value) -> Progress:
        """End after the last one."""
        return Completed(value=value)

    def enter(self, context: DecisionContext, value: Value, place: str) -> Progress:
        return self._go(context, {"node": self.path}, 0, value, None, place)

    def _go(
        self, context: DecisionContext, frame: Frame, index: int, value: Value, before: Value | None, place: str
    ) -> Progress:
        while index < self.length:
            here: Frame = {"node": self.path, "index": index}
            if _visits(frame):
                here = {**here, "visits": _visits(frame)}
            if before is not None and self.at(index).may_repeat:
                here = {**here, "before": before.as_json()}
            if index + 1 < self.length and self.at(index + 1).may_repeat:
                here = {**here, "input": value.as_json()}
            node, inner = self.locate(here, str(index), place)
            progress = node.enter(context, value, inner)
            match progress:
                case Completed():
                    index, before, value = index + 1, value, progress.value
                case RunEnded() | Failed():
                    return progress
                case RepeatRequested():
                    return self._again(context, here, progress, place)
                case _:
                    return with_child(here, str(index), progress)
        return self.finish(value)

    def locate(self, frame: Frame, slot: str, place: str) -> tuple[ProgramNode, str]:
        node, visit = self.at(int(slot)), self.visit(frame, int(slot))
        inner = below(place, node.id)
        return node, (f"{inner}#{visit}" if visit > 1 else inner)

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
                before = read_value(frame["input"]) if "input" in frame else None
                return self._go(context, frame, number(frame, "index") + 1, progress.value, before, place)
            case RepeatRequested():
                return self._again(context, frame, progress, place)
            case Failed():
                return progress

    def _again(self, context: DecisionContext, frame: Frame, again: RepeatRequested, place: str) -> Progress:
        """Go one step back, with what was said."""
        index = number(frame, "index")
        if index == 0:
            return again
        visits = _visits(frame)
        used = visits.get(str(index), 1)
        if used > again.limit or "before" not in frame:
            return stopped(again.error)
        counted = {**visits, str(index): used + 1, str(index - 1): visits.get(str(index - 1), 1) + 1}
        value = repeated(read_value(frame["before"]), again)
        return self._go(context, {"visits": counted}, index - 1, value, None, place)


def _visits(frame: Frame) -> Mapping[str, int]:
    found = frame.get("visits", {})
    assert isinstance(found, Mapping)
    return found


@dataclass(frozen=True, kw_only=True)
class TurnsNode(SequenceNode):
    """Participants that speak in turn, each hearing what the one before said."""

    order: tuple[int, ...]
    """Positions in ``children``, one per turn of a round."""
    turns: int
    cut_short: bool = False
    """Whether a limit ends it before everybody had their turn; that is an error."""

    @property
    def length(self) -> int:
        return self.turns if self.order else 0

    def at(self, index: int) -> ProgramNode:
        return self.children[self.order[index % len(self.order)]]

    def visit(self, frame: Frame, index: int) -> int:
        earlier = index // len(self.order) * self.order.count(self.order[index % len(self.order)])
        this_round = self.order[: index % len(self.order)].count(self.order[index % len(self.order)])
        # Repetitions that people asked for come on top, so that no two passages share a name.
        extra = sum(
            count - 1
            for turn, count in _visits(frame).items()
            if self.order[int(turn) % len(self.order)] == self.order[index % len(self.order)]
        )
        return earlier + this_round + 1 + extra

    def finish(self, value: Value) -> Progress:
        if not self.cut_short:
            return Completed(value=value)
        message = f"{self.path or 'The workflow'} reached its max_iterations of {self.turns} before it was done."
        return Failed(error=RunError(type="max_iterations", message=message))
