"""At the same time, on the same input.

Frame: ``node``, ``input``, ``children`` by their number, ``done`` (values) and ``failed`` (errors) of those that ended,
and ``stuck``, where those that failed stood.

When one fails the others go on as far as they can without asking anybody, then all of it fails with the first failure
in declaration order: what runs and how it ends does not depend on who is quicker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from kneo.records.run import RunError
from kneo.runtime.interpreter.node import (
    Action,
    Completed,
    DecisionContext,
    Execute,
    Failed,
    Frame,
    ProgramNode,
    Progress,
    RepeatRequested,
    RunEnded,
    below,
    children,
    stopped,
)
from kneo.runtime.interpreter.values import Value, read_value


@dataclass(frozen=True, kw_only=True)
class ParallelNode(ProgramNode):
    children: tuple[ProgramNode, ...]

    def parts(self) -> Iterable[ProgramNode]:
        return self.children

    def enter(self, context: DecisionContext, value: Value, place: str) -> Progress:
        frame: Frame = {"node": self.path, "input": value.as_json(), "children": {}, "done": {}}
        for index in range(len(self.children)):
            slot = str(index)
            node, inner = self.locate(frame, slot, place)
            progress = node.enter(context, value, inner)
            if isinstance(progress, RunEnded):
                return progress
            if isinstance(progress, RepeatRequested):
                return stopped(progress.error)
            frame = self._kept(frame, slot, progress)
        return self.changed(context, frame, place)

    def locate(self, _frame: Frame, slot: str, place: str) -> tuple[ProgramNode, str]:
        node = self.children[int(slot)]
        return node, below(place, node.id)

    def resume(
        self,
        context: DecisionContext,
        frame: Frame,
        slot: str,
        progress: Completed | Failed | RepeatRequested,
        place: str,
    ) -> Progress:
        if isinstance(progress, RepeatRequested):
            return stopped(progress.error)
        return self.changed(context, self._kept(frame, slot, progress), place)

    @staticmethod
    def _kept(frame: Frame, slot: str, progress: Frame | Completed | Failed) -> Frame:
        match progress:
            case Completed():
                return {**frame, "done": {**_map(frame, "done"), slot: progress.value.as_json()}}
            case Failed():
                error = {"type": progress.error.type, "message": progress.error.message}
                stuck = (
                    {**_map(frame, "stuck"), slot: progress.kept} if progress.kept is not None else _map(frame, "stuck")
                )
                return {**frame, "failed": {**_map(frame, "failed"), slot: error}, "stuck": stuck}
            case _:
                return {**frame, "children": {**children(frame), slot: progress}}

    def ready(self, frame: Frame, place: str) -> Iterator[Action]:
        for action in super().ready(frame, place):
            if isinstance(action, Execute) or not _map(frame, "failed"):
                yield action

    def changed(self, _moment: DecisionContext, frame: Frame, place: str) -> Progress:
        failed = _map(frame, "failed")
        if failed and not any(True for _ in self.ready(frame, place)):
            first = failed[min(failed, key=int)]
            assert isinstance(first, Mapping)
            can_go_on = failed.keys() == _map(frame, "stuck").keys()
            error = RunError(type=first["type"], message=first["message"])
            return Failed(error=error, kept=frame if can_go_on else None)
        if children(frame):
            return frame
        return Completed(value=self._joined(read_value(frame["input"]), _map(frame, "done")))

    def revived(self, frame: Frame) -> Frame:
        again = {**children(frame), **_map(frame, "stuck")}
        return super().revived({**frame, "children": again, "failed": {}, "stuck": {}})

    def _joined(self, value: Value, done: Mapping[str, object]) -> Value:
        """Merge what the branches said, in declaration order: the last one that said anything is the text."""
        text, variables, outputs = value.text, dict(value.variables), {}
        for index, node in enumerate(self.children):
            said = read_value(done[str(index)])
            variables |= {name: kept for name, kept in said.variables.items() if value.variables.get(name) != kept}
            if said.status != "skipped":
                text = outputs[node.id] = said.text
        metadata = {"node_kind": "parallel", "node_id": self.id}
        return replace(value, text=text, status="completed", metadata=metadata, variables=variables, outputs=outputs)


def _map(frame: Frame, key: str) -> Mapping[str, object]:
    found = frame.get(key, {})
    assert isinstance(found, Mapping)
    return found
