"""How a run stands, as its program sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from kneo.records import run as states
from kneo.records.task import HumanTask, TaskStatus
from kneo.sdk.host import Standing
from kneo.sdk.run.workflow import EXECUTOR_POSITION
from kneo.sdk.workflow.plan import Place, Plan
from kneo.sdk.workflow.requirements import ErrorRequirement, Requirement, StepRequirement
from kneo.sdk.workflow.types import StepOutput


class RunStatus(StrEnum):
    running = "RUNNING"
    paused = "PAUSED"
    completed = "COMPLETED"
    cancelled = "CANCELLED"
    error = "ERROR"


_STATUS = {
    states.RunStatus.RUNNING: RunStatus.running,
    states.RunStatus.PAUSED: RunStatus.paused,
    states.RunStatus.SUCCEEDED: RunStatus.completed,
    states.RunStatus.CANCELLED: RunStatus.cancelled,
}


@dataclass
class WorkflowRunOutput:
    """How a run stood when this was read; ``continue_run`` takes it with what was said about its requirements.

    Attributes:
        content: What came of it; of a cancelled run, why.
        step_results: What each step said, in order.
        step_requirements: Everything it asked so far; the last one is active while it is paused.
        error_requirements: The same about steps that failed.
    """

    run_id: str
    session_id: str | None
    workflow_name: str | None
    status: RunStatus
    content: str | None
    step_results: Sequence[StepOutput] = ()
    step_requirements: list[StepRequirement] = field(default_factory=list)
    error_requirements: list[ErrorRequirement] = field(default_factory=list)

    @property
    def is_paused(self) -> bool:
        return self.status is RunStatus.paused

    @property
    def pause_kind(self) -> str | None:
        """What it waits for: a ``step``, or what runs inside one and asks in its middle, the ``executor``."""
        active = self.active_requirement
        if active is None:
            return None
        return "executor" if active.task.position == EXECUTOR_POSITION else "step"

    @property
    def active_requirement(self) -> Requirement | None:
        """The question that is asked last; the others that are open may be answered too."""
        waiting = sorted(self.active_requirements, key=lambda each: each.task.id)
        return waiting[-1] if waiting and self.is_paused else None

    @property
    def active_requirements(self) -> Sequence[Requirement]:
        return [each for each in (*self.step_requirements, *self.error_requirements) if each.is_open]

    @property
    def active_step_requirements(self) -> Sequence[StepRequirement]:
        return [each for each in self.step_requirements if each.is_open]

    @property
    def paused_step_name(self) -> str | None:
        active = self.active_requirement
        return active.step_name if active else None

    @property
    def paused_step_index(self) -> int | None:
        active = self.active_requirement
        return active.step_index if active else None

    @property
    def steps_requiring_confirmation(self) -> Sequence[StepRequirement]:
        return [each for each in self.active_step_requirements if each.requires_confirmation]

    @property
    def steps_requiring_user_input(self) -> Sequence[StepRequirement]:
        return [each for each in self.active_step_requirements if each.requires_user_input]

    @property
    def steps_requiring_output_review(self) -> Sequence[StepRequirement]:
        return [each for each in self.active_step_requirements if each.is_post_execution]

    @property
    def steps_requiring_route(self) -> Sequence[StepRequirement]:
        return [each for each in self.active_step_requirements if each.requires_route_selection]

    @property
    def steps_with_errors(self) -> Sequence[ErrorRequirement]:
        return [each for each in self.error_requirements if each.is_open]


def output_of(plan: Plan, standing: Standing) -> WorkflowRunOutput:
    """Tell how a run stands."""
    run = standing.run
    status = _STATUS.get(run.status, RunStatus.error)
    session = run.metadata.get("session_id")
    found = WorkflowRunOutput(
        run_id=run.id,
        session_id=session if isinstance(session, str) else None,
        workflow_name=run.workflow_name,
        status=status,
        content=run.output_text if run.error is None else run.error.message,
        step_results=plan.outputs(standing),
    )
    for task in standing.tasks:
        if task.status is TaskStatus.CANCELLED:
            continue
        place = _place(plan, task)
        if task.position == "error":
            found.error_requirements.append(ErrorRequirement(task, place))
        else:
            found.step_requirements.append(StepRequirement(task, place))
    return found


def _place(plan: Plan, task: HumanTask) -> Place:
    return plan.places.get(task.step_path) or Place(task.step_id, "Step", 0)
