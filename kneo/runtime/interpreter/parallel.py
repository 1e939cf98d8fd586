"""Children that run at the same time, on the same input.

Frame: ``node``, ``input``, ``children`` by their number, ``done`` (values) and ``failed`` (errors) of those that ended,
and ``stuck``, the frames of those that failed.

When a child fails, the others continue as far as they can without opening tasks; then the node fails with the first failure
in declaration order. Which steps run and how the node ends does not depend on which child is quicker.
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
    NodeEnd,
    ProgramNode,
    Progress,
    RepeatRequested,
    RunEnded,
    below,
    children,
    mapping,
    stopped,
    with_child,
)
from kneo.runtime.interpreter.values import Value, read_value


@dataclass(frozen=True, kw_only=True)
class ParallelNode(ProgramNode):
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
        text, variables, outputs = value.text, dict(value.variables), {}
        for index, node in enumerate(self.children):
            result = read_value(done[str(index)])
            variables |= {name: saved for name, saved in result.variables.items() if value.variables.get(name) != saved}
            if result.status != "skipped":
                text = outputs[node.id] = result.text
        metadata = {"node_kind": "parallel", "node_id": self.id}
        return replace(value, text=text, status="completed", metadata=metadata, variables=variables, outputs=outputs)
