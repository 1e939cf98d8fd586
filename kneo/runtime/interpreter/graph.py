"""Nodes and the ways between them.

Frame: ``node``, ``at`` (where it is), ``count`` (nodes begun), ``visits`` by node, one child; ``input`` and ``before``
(``at`` and ``input`` of the node it came from) where a person may want a node repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kneo.errors import Invalid
from kneo.records.run import RunError
from kneo.runtime.interpreter.branch import condition_failed
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
from kneo.runtime.interpreter.sequence import repeated
from kneo.runtime.interpreter.values import Value, read_value
from kneo.spec.gates import holds
from kneo.spec.models.human import Condition


@dataclass(frozen=True, kw_only=True)
class GraphEdge:
    """An edge; ``None`` is always taken."""

    target: str
    condition: Condition | None


@dataclass(frozen=True, kw_only=True)
class GraphNode(ProgramNode):
    start: str
    nodes: Mapping[str, ProgramNode]
    ways: Mapping[str, tuple[GraphEdge, ...]]
    max_steps: int

    def parts(self) -> Iterable[ProgramNode]:
        return self.nodes.values()

    @property
    def may_repeat(self) -> bool:
        return self.nodes[self.start].may_repeat

    def enter(self, context: DecisionContext, value: Value, place: str) -> Progress:
        return self._go(context, {"node": self.path}, self.start, value, place)

    def _go(self, context: DecisionContext, frame: Frame, at: str | None, value: Value, place: str) -> Progress:
        while at is not None:
            count = number(frame, "count") + 1
            if count > self.max_steps:
                message = (
                    f"{self.path or 'The graph'} reached its max_steps of {self.max_steps} and would go on to {at}."
                )
                return Failed(error=RunError(type="max_iterations", message=message))
            visits = {**_visits(frame), at: _visits(frame).get(at, 0) + 1}
            frame = {**frame, "at": at, "count": count, "visits": visits, "input": value.as_json()}
            node, inner = self.locate(frame, at, place)
            progress = node.enter(context, value, inner)
            match progress:
                case Completed():
                    following = self._next(at, progress.value)
                    if isinstance(following, Failed):
                        return following
                    frame = self._left(frame)
                    at, value = following, progress.value
                case RunEnded() | Failed():
                    return progress
                case RepeatRequested():
                    return self._again(context, frame, progress, place)
                case _:
                    return with_child(self._trimmed(frame), at, progress)
        return Completed(value=value)

    def _left(self, frame: Frame) -> Frame:
        """Remember the node just left as the one before the next."""
        return {**frame, "before": {"at": frame["at"], "input": frame.get("input")}}

    def _trimmed(self, frame: Frame) -> Frame:
        # Inputs are only worth their bytes where a person may want a node repeated.
        if any(node.may_repeat for node in self.nodes.values()):
            return frame
        return {key: kept for key, kept in frame.items() if key not in {"input", "before"}}

    def _next(self, at: str, value: Value) -> str | Failed | None:
        try:
            for way in self.ways.get(at, ()):
                if way.condition is None or holds(way.condition, value.facts):
                    return way.target
        except Invalid as error:
            return condition_failed(self.path, error)
        return None

    def locate(self, frame: Frame, slot: str, place: str) -> tuple[ProgramNode, str]:
        visit, inner = _visits(frame).get(slot, 1), below(place, slot)
        return self.nodes[slot], (f"{inner}#{visit}" if visit > 1 else inner)

    def resume(
        self,
        context: DecisionContext,
        frame: Frame,
        slot: str,
        progress: Completed | Failed | RepeatRequested,
        place: str,
    ) -> Progress:
        match progress:
            case Completed():
                following = self._next(slot, progress.value)
                if isinstance(following, Failed):
                    return following
                return self._go(context, self._left(frame), following, progress.value, place)
            case RepeatRequested():
                return self._again(context, frame, progress, place)
            case Failed():
                return progress

    def _again(self, context: DecisionContext, frame: Frame, again: RepeatRequested, place: str) -> Progress:
        before = frame.get("before")
        if not isinstance(before, Mapping):
            return again
        at = frame["at"]
        assert isinstance(at, str)
        if _visits(frame).get(at, 1) > again.limit or before["input"] is None:
            return stopped(again.error)
        kept = {key: frame[key] for key in ("node", "count", "visits")}
        return self._go(context, kept, before["at"], repeated(read_value(before["input"]), again), place)


def _visits(frame: Frame) -> Mapping[str, int]:
    found = frame.get("visits", {})
    assert isinstance(found, Mapping)
    return found
