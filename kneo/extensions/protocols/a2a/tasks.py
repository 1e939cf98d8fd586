"""Tasks of Agent2Agent: a run as its callers see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from a2a.helpers import new_data_part, new_text_part
from a2a.types import Artifact, Message, Part, Role, Task, TaskState, TaskStatus

from kneo.api.run_views import RunErrorView, readable, request_for_callers
from kneo.clock import parse_time
from kneo.records.run import Run, RunStatus
from kneo.records.task import HumanTask
from kneo.runtime.engine.wait import SettledRun
from kneo.store.run_filter import RunFilter

ENDED: Mapping[RunStatus, TaskState] = {
    RunStatus.SUCCEEDED: TaskState.TASK_STATE_COMPLETED,
    RunStatus.FAILED: TaskState.TASK_STATE_FAILED,
    RunStatus.CANCELLED: TaskState.TASK_STATE_CANCELED,
    RunStatus.EXPIRED: TaskState.TASK_STATE_FAILED,
    RunStatus.TIMED_OUT: TaskState.TASK_STATE_FAILED,
}

STATES: Mapping[int, RunFilter] = {
    TaskState.TASK_STATE_UNSPECIFIED: RunFilter(),
    TaskState.TASK_STATE_WORKING: RunFilter(statuses=(RunStatus.RUNNING, RunStatus.PAUSED), asks=False),
    TaskState.TASK_STATE_INPUT_REQUIRED: RunFilter(asks=True),
    **{
        state: RunFilter(statuses=[status for status, ended in ENDED.items() if ended == state])
        for state in ENDED.values()
    },
}
"""The runs that have a state; a run is in no other one."""

OUTPUT = "output"
"""The id of the artifact with the output of a run."""

_QUESTION_FIELDS = (
    "request_id",
    "type",
    "title",
    "prompt",
    "subject",
    "subject_digest",
    "schema",
    "options",
    "multiple",
    "decisions",
    "deadline_epoch",
)
"""Fields of a question that an answer needs."""


def state_of(settled: SettledRun) -> TaskState:
    """Return the state of a run: ``input-required`` while it has an open task, ``working`` while it waits for a clock."""
    if settled.run.status in ENDED:
        return ENDED[settled.run.status]
    return TaskState.TASK_STATE_INPUT_REQUIRED if settled.tasks else TaskState.TASK_STATE_WORKING


def task_of(settled: SettledRun, address: str, history: int | None = None) -> Task:
    """Return a run as a task.

    Args:
        settled: The run, with its open tasks.
        address: The address of this service, for links.
        history: The number of messages to repeat; ``None`` for all.
    """
    run = settled.run
    task = Task(id=run.id, context_id=context_of(run), status=status_of(settled, address))
    output = output_of(run)
    if output is not None:
        task.artifacts.append(output)
    if history is None or history > 0:
        text = readable(run.input_text) or ""
        sent = Message(message_id=f"{run.id}.input", role=Role.ROLE_USER, parts=[new_text_part(text)])
        sent.task_id, sent.context_id = task.id, task.context_id
        task.history.append(sent)
    if run.release is not None:
        release = run.release
        task.metadata.update({"bundle": release.bundle, "version": release.version, "digest": release.digest})
    return task


def context_of(run: Run) -> str:
    """Return the context of a run: its session."""
    return str(run.metadata.get("session_id") or run.id)


def status_of(settled: SettledRun, address: str) -> TaskStatus:
    """Return the status of a run, with its questions or its error."""
    run = settled.run
    status = TaskStatus(state=state_of(settled))
    status.timestamp.FromDatetime(parse_time(run.updated_at))
    parts = _parts(run, settled.tasks, address)
    if parts:
        name = ".".join((run.id, *(task.request_id for task in settled.tasks))) if settled.tasks else f"{run.id}.status"
        message = Message(
            message_id=name, role=Role.ROLE_AGENT, parts=parts, task_id=run.id, context_id=context_of(run)
        )
        status.message.CopyFrom(message)
    return status


def output_of(run: Run) -> Artifact | None:
    """Return the output of a run that has succeeded."""
    if run.status is not RunStatus.SUCCEEDED:
        return None
    return Artifact(artifact_id=OUTPUT, name=OUTPUT, parts=[new_text_part(readable(run.output_text) or "")])


def _parts(run: Run, tasks: Sequence[HumanTask], address: str) -> list[Part]:
    error = RunErrorView.of(run.error)
    if error is not None:
        return [new_text_part(f"{error.type}: {error.message}")]
    return [part for task in tasks for part in _question(task, address)]


def _question(task: HumanTask, address: str) -> tuple[Part, Part]:
    """Return a question as a text with the link to answer it, and as data."""
    link = f"{address}/console/inbox/{task.id}"
    request = request_for_callers(task)
    data = {name: request.get(name) for name in _QUESTION_FIELDS}
    known = {"continuation_id": task.id, "key": task.key, "url": link}
    return new_text_part(f"{request['prompt'] or request['title']}\n{link}"), new_data_part({**known, **data})
