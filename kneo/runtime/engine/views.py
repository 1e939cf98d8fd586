"""Views of a run's checkpoints: its timeline, its recovery state, and the differences of two checkpoints. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from kneo.errors import Invalid
from kneo.records.run import Checkpoint, Run, RunStatus, StepRecord
from kneo.records.task import HumanTask

Json = dict[str, object]

MAX_CHANGES = 200
"""Differences that one comparison lists."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The input of the views."""

    run: Run
    steps: Sequence[StepRecord]
    checkpoints: Sequence[Checkpoint]
    task: HumanTask | None
    answers: Sequence[Json] = ()
    """For a run that repeats another one: the reused answers, and the reasons for the questions it asks."""


def can_continue(run: Run) -> bool:
    """Return whether a failed run can be continued."""
    return run.status is RunStatus.FAILED and bool(run.state) and not run.is_imported


def replay_context(record: RunRecord) -> Json:
    """Return the completed steps and the next one."""
    run, steps = record.run, record.steps
    done = [step.step_id for step in steps if step.status == "completed"]
    failed = steps[-1].step_id if steps and steps[-1].status == "failed" else None
    texts = [step.output_text for step in steps if step.status == "completed" and step.output_text is not None]
    return {
        "run_id": run.id,
        "status": run.status.value,
        "workflow_type": run.workflow_type,
        "completed_steps": done,
        "completed_nodes": done,
        "failed_step": failed,
        "failed_node": failed,
        "next_step_index": len(done),
        "resume_input": texts[-1] if texts else run.input_text,
        "checkpoint_count": len(record.checkpoints),
        "can_continue": can_continue(run),
        "can_replay": bool(record.checkpoints),
    }


def replay_view(record: RunRecord) -> Json:
    """Return a run's checkpoints as a timeline."""
    run = record.run
    return {
        **_head(run),
        "agent_name": run.agent_name,
        "checkpoint_count": len(record.checkpoints),
        "timeline": _timeline(record),
        "answers": list(record.answers),
        "replay_context": replay_context(record),
    }


@dataclass(frozen=True, kw_only=True)
class RunPosition:
    """The position of a run in its workflow. Steps are nodes, too, as the documented fields have them under both names.

    Attributes:
        current_step_index: The number of the current step of a sequential workflow, counted from 0; steps inside others are not
            counted.
        current_step_id: The step that the run executes or waits at, else the last one.
    """

    current_step_index: int | None
    current_step_id: str | None
    current_node_id: str | None
    visited_steps: list[str]
    visited_nodes: list[str]

    @classmethod
    def of(cls, run: Run, task: HumanTask | None) -> RunPosition:
        """Return the position of a run and of its first open task."""
        path = (task.step_path or task.step_id) if task is not None else _current_step(run.state)
        return cls._at(run.workflow_type, run.visited_steps, path, task.step_id if task is not None else path)

    @classmethod
    def at_checkpoint(cls, run: Run, visited: Sequence[str], item: Checkpoint) -> RunPosition:
        """Return the position of a run when it wrote a checkpoint, after it had visited these steps."""
        return cls._at(run.workflow_type, visited, item.step_id, item.step_id)

    @classmethod
    def _at(cls, family: str | None, visited: Sequence[str], path: str | None, step_id: str | None) -> RunPosition:
        last = visited[-1] if visited else None
        return cls(
            current_step_index=_index(visited, path or last) if family == "sequential" else None,
            current_step_id=step_id or last,
            current_node_id=step_id or last,
            visited_steps=list(visited),
            visited_nodes=list(visited),
        )


def _current_step(state: Mapping[str, object]) -> str | None:
    """Return the path of the step that a state is at: that of its innermost frame, of several the first."""
    path, frame = None, state
    while isinstance(children := frame.get("children"), Mapping) and children:
        frame = next(iter(children.values()))
        path = str(frame["node"])
    return path


def _index(visited: Sequence[str], path: str | None) -> int | None:
    if path is None:
        return None
    done = list(dict.fromkeys(each.partition("/")[0] for each in visited))
    outer = path.partition("/")[0]
    return done.index(outer) if outer in done else len(done)


def recovery_view(record: RunRecord) -> Json:
    """Return the state of a run and whether it can be continued."""
    run, task = record.run, record.task
    position = asdict(RunPosition.of(run, task))
    del position["current_step_id"]
    return {
        **_head(run),
        **position,
        "checkpoint_count": len(record.checkpoints),
        "pending_human_request": {"id": task.request_id, "request_id": task.request_id, "prompt": task.prompt}
        if task
        else None,
        "continuation_id": task.id if task else None,
        "error": asdict(run.error) if run.error else None,
        "replay_context": replay_context(record),
    }


def _head(run: Run) -> Json:
    return {
        "run_id": run.id,
        "status": run.status.value,
        "workflow_name": run.workflow_name,
        "workflow_kind": run.workflow_kind,
    }


def _summary(run: Run, item: Checkpoint) -> Json:
    is_graph = run.workflow_type == "graph"
    return {
        "id": item.id,
        "sequence": item.sequence,
        "type": item.type,
        "created_at": item.created_at,
        "workflow_name": run.workflow_name,
        "step_id": item.step_id,
        "node_id": item.step_id if is_graph else None,
    }


def _timeline(record: RunRecord) -> list[Json]:
    seen: list[str] = []
    entries = []
    for item in record.checkpoints:
        entries.append(_timeline_entry(record.run, item, RunPosition.at_checkpoint(record.run, seen, item)))
        if item.step_id is not None:
            seen.append(item.step_id)
    return entries


def _timeline_entry(run: Run, item: Checkpoint, position: RunPosition) -> Json:
    state = item.state
    return {
        **_summary(run, item),
        "status": state.get("status"),
        "current_step_index": position.current_step_index,
        "current_step_id": position.current_step_id,
        "current_node_id": position.current_node_id,
        "continuation_id": item.metadata.get("continuation_id"),
        "pending_human_request_id": item.metadata.get("request_id"),
        "error": state.get("error"),
    }


# ---- differences ------------------------------------------------------------------------------------------------


def checkpoint_diff(run: Run, checkpoints: Sequence[Checkpoint], before: int | None, after: int | None) -> Json:
    """Compare two checkpoints by their numbers; by default the last two.

    Raises:
        Invalid: there are not two of them.
    """
    by_number = {item.sequence: item for item in checkpoints}
    numbers = sorted(by_number)
    if len(numbers) < 2:
        msg = f"The run {run.id} has {len(numbers)} checkpoints; comparing takes two."
        raise Invalid(msg, code="checkpoint_diff_invalid")
    old, new = before or numbers[-2], after or numbers[-1]
    for number in (old, new):
        if number not in by_number:
            msg = f"The run {run.id} has no checkpoint {number}; it has {numbers[0]} to {numbers[-1]}."
            raise Invalid(msg, code="checkpoint_diff_invalid")
    if old == new:
        msg = f"Checkpoint {old} is compared with itself."
        raise Invalid(msg, code="checkpoint_diff_invalid")
    first, second = _flat(by_number[old]), _flat(by_number[new])
    added = [{"path": path, "value": second[path]} for path in sorted(second.keys() - first.keys())]
    removed = [{"path": path, "value": first[path]} for path in sorted(first.keys() - second.keys())]
    both = sorted(path for path in first.keys() & second.keys() if first[path] != second[path])
    changed = [{"path": path, "before": first[path], "after": second[path]} for path in both]
    count = len(added) + len(removed) + len(changed)
    left, shown = MAX_CHANGES, []
    for entries in (added, removed, changed):
        shown.append(entries[:left])
        left -= len(shown[-1])
    return {
        "run_id": run.id,
        "from_checkpoint": _summary(run, by_number[old]),
        "to_checkpoint": _summary(run, by_number[new]),
        "change_count": count,
        "added": shown[0],
        "removed": shown[1],
        "changed": shown[2],
        "truncated": count > MAX_CHANGES,
    }


def _flat(item: Checkpoint) -> Mapping[str, object]:
    found: dict[str, object] = {}
    _flatten({"state": item.state, "metadata": item.metadata}, "", found)
    return found


def _flatten(value: object, path: str, found: dict[str, object]) -> None:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            _flatten(inner, f"{path}.{key}" if path else str(key), found)
    else:
        found[path] = value
