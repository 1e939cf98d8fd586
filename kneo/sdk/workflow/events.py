"""Following a run while a thread of its own drives it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping

from kneo.clock import isoformat
from kneo.records.run import RunStatus, TraceEvent
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.steps.context import StepContext
from kneo.sdk.host import Host, Standing, run_sync
from kneo.sdk.run.workflow import (
    EXECUTOR_POSITION,
    RouterContinuedEvent,
    RouterPausedEvent,
    StepCompletedEvent,
    StepContinuedEvent,
    StepErrorEvent,
    StepExecutorContinuedEvent,
    StepExecutorPausedEvent,
    StepOutputReviewEvent,
    StepPausedEvent,
    StepStartedEvent,
    WorkflowCancelledEvent,
    WorkflowCompletedEvent,
    WorkflowErrorEvent,
    WorkflowEvent,
    WorkflowPausedEvent,
    WorkflowStartedEvent,
)
from kneo.sdk.workflow.plan import Plan
from kneo.store import history

LOOK_SECONDS = 0.02


class Follower:
    """Tells what happens in one run: what begins from the process that begins it, everything else from its trace."""

    def __init__(self, plan: Plan, workflow_name: str) -> None:
        self._plan = plan
        self._workflow = workflow_name
        self._began: queue.SimpleQueue[WorkflowEvent] = queue.SimpleQueue()
        self._told = 0

    def began(self, activity: Activity, context: StepContext) -> None:
        """Note that a step begins."""
        assert self._plan.host is not None
        at = isoformat(self._plan.host.store.clock.now())
        if activity.path in self._plan.places:
            place = self._plan.places[activity.path]
            where = StepStartedEvent(
                run_id=context.run_id,
                at=at,
                workflow_name=self._workflow,
                step_id=activity.path,
                step_name=place.name,
                step_index=place.index,
            )
            self._began.put(where)

    def follow(self, host: Host, run_id: str, *, seen: int) -> Iterator[WorkflowEvent]:
        """Drive a run to its next pause or end and tell what happens.

        Args:
            host: Where it is.
            run_id: Which run.
            seen: The number of the last trace event that is known already.
        """
        self._told = seen
        ends: list[Standing | BaseException] = []
        done = threading.Event()

        def drive() -> None:
            try:
                ends.append(run_sync(host.drive(run_id)))
            except BaseException as error:  # noqa: BLE001 - raised again where it is followed
                ends.append(error)
            done.set()

        thread = threading.Thread(target=drive, name="kneo-sdk", daemon=True)
        thread.start()
        while not done.wait(LOOK_SECONDS):
            yield from self._news(host, run_id)
        thread.join()
        yield from self._news(host, run_id)
        end = ends[0]
        if isinstance(end, BaseException):
            raise end
        yield self._ended(end)

    def _news(self, host: Host, run_id: str) -> Iterator[WorkflowEvent]:
        began = []
        while not self._began.empty():
            began.append(self._began.get())
        with host.store.read() as tx:
            trace = history.list_trace(tx, run_id, after=self._told)
        self._told = max([self._told, *(event.sequence for event in trace)])
        happened = [event for entry in trace if (event := self._event(host, entry)) is not None]
        yield from sorted([*happened, *began], key=lambda event: event.at)

    def _event(self, host: Host, entry: TraceEvent) -> WorkflowEvent | None:
        if entry.type == "workflow_started":
            return WorkflowStartedEvent(run_id=entry.run_id, at=entry.timestamp, workflow_name=self._workflow)
        place = self._plan.places.get(entry.step_id or "")
        if place is None:
            return None
        here: dict[str, object] = {
            "run_id": entry.run_id,
            "at": entry.timestamp,
            "workflow_name": self._workflow,
            "step_id": entry.step_id,
            "step_name": place.name,
            "step_index": place.index,
        }
        return self._at(host, entry, here)

    def _at(self, host: Host, entry: TraceEvent, here: Mapping[str, object]) -> WorkflowEvent | None:
        """Tell what happened at a primitive."""
        match entry.type:
            case "step_completed":
                return StepCompletedEvent(**here, content=_text(entry.data.get("output_preview")))  # type: ignore[arg-type]
            case "step_failed":
                error = entry.data.get("error")
                told = error.get("message") if isinstance(error, Mapping) else None
                return StepErrorEvent(**here, error=_text(told))  # type: ignore[arg-type]
            case "human_intervention_requested":
                return self._paused(host, entry, here)
            case "workflow_resumed":
                make = _CONTINUED.get(str(entry.data.get("position")), StepContinuedEvent)
                return make(**here, decision=str(entry.data.get("decision", "")))  # type: ignore[arg-type]
            case _:
                return None

    def _paused(self, host: Host, entry: TraceEvent, here: Mapping[str, object]) -> WorkflowEvent:
        continuation = str(entry.data.get("continuation_id"))
        task = next(task for task in host.look(entry.run_id).tasks if task.id == continuation)
        asked = {**here, "message": task.prompt, "continuation_id": continuation}
        match entry.data.get("position"):
            case "route":
                return RouterPausedEvent(**asked, available_choices=tuple(task.options or ()))  # type: ignore[arg-type]
            case "after":
                return StepOutputReviewEvent(**asked)  # type: ignore[arg-type]
            case position if position == EXECUTOR_POSITION:
                return StepExecutorPausedEvent(**asked, name=task.key, schema=task.answer_schema)  # type: ignore[arg-type]
            case _:
                return StepPausedEvent(**asked)  # type: ignore[arg-type]

    def _ended(self, standing: Standing) -> WorkflowEvent:
        run = standing.run
        common = {"run_id": run.id, "workflow_name": self._workflow, "at": run.updated_at}
        told = run.error.message if run.error else None
        match run.status:
            case RunStatus.PAUSED:
                return WorkflowPausedEvent(**common)
            case RunStatus.SUCCEEDED:
                return WorkflowCompletedEvent(**common, content=run.output_text)
            case RunStatus.CANCELLED:
                return WorkflowCancelledEvent(**common, reason=told)
            case _:
                return WorkflowErrorEvent(**common, error=told)


_CONTINUED: Mapping[str, type[StepContinuedEvent | RouterContinuedEvent | StepExecutorContinuedEvent]] = {
    "route": RouterContinuedEvent,
    EXECUTOR_POSITION: StepExecutorContinuedEvent,
}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
