"""The state of a run as its program reads it: its output, and one requirement for each question to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from kneo.embed.answers import DecisionRequest, check_decision, decision_from_value, filled, problems
from kneo.embed.runs import RunSnapshot
from kneo.records import run as records
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask, TaskStatus
from kneo.sdk.run.workflow import EXECUTOR_POSITIONS
from kneo.sdk.workflow.step import PrimitiveLocation, StepBuilder
from kneo.sdk.workflow.types import HumanReview, StepOutput, UserInputField, encode_content
from kneo.spec.gates import positions_of

NO_REVIEW = HumanReview()


@dataclass
class Requirement:
    """A question of a run. ``continue_run`` sends the answer that is set here."""

    task: HumanTask
    location: PrimitiveLocation
    answer: DecisionRequest | None = None

    @property
    def step_id(self) -> str:
        """The path of the step."""
        return self.task.step_path

    @property
    def step_name(self) -> str:
        return self.location.name

    @property
    def step_type(self) -> str:
        return self.location.kind

    @property
    def step_index(self) -> int:
        return self.location.index

    @property
    def is_executor(self) -> bool:
        """Whether the question is asked in the middle of the step."""
        return self.task.position in EXECUTOR_POSITIONS

    @property
    def is_open(self) -> bool:
        """Whether the question has no recorded answer."""
        return self.task.status in UNRESOLVED

    @property
    def is_resolved(self) -> bool:
        """Whether the question has an answer, set here or recorded."""
        return self.answer is not None or not self.is_open

    @property
    def timeout_at(self) -> str | None:
        return self.task.deadline_at

    @property
    def on_timeout(self) -> str:
        return self.task.on_timeout

    @property
    def retry_count(self) -> int:
        """The number of times that people had the step repeated before this question."""
        position = self.task.position
        number = self.task.key.removesuffix(f".{position}").rpartition("@")[2] if position in {"after", "error"} else ""
        return int(number) if number.isdigit() else 0

    def to_dict(self) -> dict[str, object]:
        """Return the question as plain values."""
        return {
            "continuation_id": self.task.id,
            "step_id": self.step_id,
            "step_name": self.step_name,
            "step_type": self.step_type,
            "step_index": self.step_index,
            "position": self.task.position,
            "message": self.task.prompt,
            "decisions": [str(each) for each in self.task.decisions],
            "is_resolved": self.is_resolved,
            "retry_count": self.retry_count,
            "timeout_at": self.timeout_at,
            "on_timeout": self.on_timeout,
        }

    def _set(self, kind: DecisionKind, **values: object) -> None:
        if kind not in self.task.decisions:
            msg = f"{self.step_name} does not take {kind} here; it takes {', '.join(self.task.decisions)}."
            raise ValueError(msg)
        # The digest of the shown subject: an answer to a subject that changed since is refused.
        self.answer = DecisionRequest(
            request_id=self.task.request_id,
            decision=kind,
            expect_digest=self.task.subject_digest,
            **values,  # type: ignore[arg-type]  # fields of DecisionRequest
        )


@dataclass
class StepRequirement(Requirement):
    """A question before, after or between steps: a confirmation, input, a review or a route."""

    user_input: dict[str, object] = field(default_factory=dict)

    @property
    def _review(self) -> HumanReview:
        return self.location.review or NO_REVIEW

    @property
    def requires_confirmation(self) -> bool:
        return self.task.position == "before" and self._review.requires_confirmation

    @property
    def confirmation_message(self) -> str | None:
        return self.task.prompt if self.requires_confirmation else None

    @property
    def requires_user_input(self) -> bool:
        return self.task.position == "before" and self._review.requires_user_input

    @property
    def user_input_message(self) -> str | None:
        return self._review.user_input_message if self.requires_user_input else None

    @property
    def user_input_schema(self) -> Sequence[UserInputField]:
        return self._review.input_fields if self.requires_user_input else ()

    @property
    def requires_output_review(self) -> bool:
        return self.task.position == "after"

    @property
    def output_review_message(self) -> str | None:
        return self.task.prompt if self.requires_output_review else None

    @property
    def requires_iteration_review(self) -> bool:
        return self.task.position == "each"

    @property
    def requires_route_selection(self) -> bool:
        return self.task.position == "route"

    @property
    def is_post_execution(self) -> bool:
        return self.requires_output_review or self.requires_iteration_review

    @property
    def available_choices(self) -> Sequence[str]:
        return self.task.options or ()

    @property
    def allow_multiple_selections(self) -> bool:
        return self.requires_route_selection and self._review.allow_multiple_selections

    @property
    def step_input(self) -> str | None:
        return None if self.is_post_execution else self.task.subject

    @property
    def step_output(self) -> str | None:
        return self.task.subject if self.is_post_execution else None

    @property
    def max_retries(self) -> int:
        return self._review.max_retries

    @property
    def confirmed(self) -> bool | None:
        """Whether the answer is not a rejection; None without an answer."""
        decision = self.task.decision.kind if self.task.decision is not None else None
        kind = self.answer.decision if self.answer is not None else decision
        return None if kind is None else kind is not DecisionKind.REJECTED

    @property
    def rejection_feedback(self) -> str | None:
        """The feedback of a rejection."""
        answer = self.answer or self.task.decision
        return answer.feedback if answer is not None else None

    @property
    def edited_output(self) -> str | None:
        """The text that replaces the output."""
        if self.answer is not None and self.answer.decision is DecisionKind.EDITED:
            return encode_content(self.answer.content)
        decision = self.task.decision
        return decision.content if decision is not None and decision.kind is DecisionKind.EDITED else None

    @property
    def selected_choices(self) -> Sequence[str]:
        answer = self.answer or self.task.decision
        if answer is None:
            return ()
        return answer.selected_options or ((answer.selected_option,) if answer.selected_option else ())

    def to_dict(self) -> dict[str, object]:
        """Return the question as plain values."""
        return {
            **super().to_dict(),
            "requires_confirmation": self.requires_confirmation,
            "requires_user_input": self.requires_user_input,
            "requires_output_review": self.requires_output_review,
            "requires_iteration_review": self.requires_iteration_review,
            "requires_route_selection": self.requires_route_selection,
            "user_input_schema": [asdict(each) for each in self.user_input_schema],
            "available_choices": list(self.available_choices),
            "step_input": self.step_input,
            "step_output": self.step_output,
            "confirmed": self.confirmed,
            "rejection_feedback": self.rejection_feedback,
            "edited_output": self.edited_output,
            "selected_choices": list(self.selected_choices),
        }

    @property
    def executor_requirements(self) -> Sequence[StepRequirement]:
        """The question itself, where it is asked in the middle of the step."""
        return (self,) if self.is_executor else ()

    # ---- answers ----------------------------------------------------------------------------------------------

    def confirm(self) -> None:
        """Approve; call ``set_user_input`` first when values are required. A question that takes a bool is answered with true.

        Raises:
            ValueError: values are missing, or the question is about a route.
        """
        if self.task.position == "wait" and (self.task.answer_schema or {}).get("type") == "boolean":
            self.provide(True)
            return
        if self.requires_user_input:
            self._check(self.user_input)
        self._set(DecisionKind.APPROVED, **({"values": dict(self.user_input)} if self.requires_user_input else {}))

    def reject(self, feedback: str | None = None) -> None:
        """Reject with the effect of ``on_reject``; a repeated step receives the feedback."""
        self._set(DecisionKind.REJECTED, **({"feedback": feedback} if feedback else {}))

    def edit(self, content: object) -> None:
        """Replace the output; content that is not a text is passed on as JSON."""
        self._set(DecisionKind.EDITED, content=encode_content(content))

    def provide(self, value: object) -> None:
        """Answer a question that a function asked inside the step, with any JSON that fits.

        Raises:
            DecisionNotAllowed: the value does not fit the question.
            Conflict: the question has an answer.
        """
        answer = replace(decision_from_value(self.task, value), expect_digest=self.task.subject_digest)
        check_decision(self.task, answer, actor="", at="")
        self.answer = answer

    def set_user_input(self, **values: object) -> None:
        """Fill in values; without a confirmation they are the whole answer.

        Raises:
            ValueError: a value does not fit; no value is kept.
        """
        if not self.requires_user_input:
            msg = f"{self.step_name} asks for no input here."
            raise ValueError(msg)
        merged = {**self.user_input, **values}
        self._check(merged)
        self.user_input = merged
        if not self.requires_confirmation:
            self.confirm()

    def provide_user_input(self, values: Mapping[str, object]) -> None:
        """Fill in values, and approve: arguments of a tool call, fields of a step, or the answer to a question in a step.

        Raises:
            ValueError: a value is missing or does not fit.
            DecisionNotAllowed: the answer does not fit the question in a step.
        """
        if self.task.position == "wait":
            self.provide(dict(values))
            return
        self.set_user_input(**values)
        self.confirm()

    def select(self, *names: str) -> None:
        """Choose a route, or several in order where that is allowed.

        Raises:
            ValueError: a choice does not exist, or there are too many.
        """
        unknown = [name for name in names if name not in self.available_choices]
        if unknown or not names:
            choices = ", ".join(self.available_choices)
            msg = f"{', '.join(unknown) or 'Nothing'} is none of the choices of {self.step_name}: {choices}."
            raise ValueError(msg)
        if len(names) > 1 and not self.allow_multiple_selections:
            msg = f"{self.step_name} takes one choice."
            raise ValueError(msg)
        multiple = {"selected_options": tuple(names)} if self.allow_multiple_selections else {}
        self._set(DecisionKind.SELECTED, selected_option=names[0], **multiple)

    def select_single(self, name: str) -> None:
        self.select(name)

    def select_multiple(self, names: Sequence[str]) -> None:
        self.select(*names)

    def _check(self, values: Mapping[str, object]) -> None:
        schema = self.task.answer_schema or {}
        found = problems(schema, filled(schema, values))
        if found:
            listed = "; ".join(f"{item['field'] or 'the input'} {item['message']}" for item in found)
            msg = f"The input of {self.step_name} does not fit: {listed}."
            raise ValueError(msg)


@dataclass
class ToolRequirement(StepRequirement):
    """A question about a tool call of the step's agent: a confirmation, arguments to fill in, or its result."""

    @property
    def _facts(self) -> Mapping[str, object]:
        facts = self.task.metadata.get("facts")
        return facts if isinstance(facts, Mapping) else {}

    @property
    def tool_name(self) -> str:
        return str(self._facts.get("tool", ""))

    @property
    def tool_args(self) -> Mapping[str, object]:
        """The arguments of the call."""
        arguments = self._facts.get("arguments")
        return arguments if isinstance(arguments, Mapping) else {}

    @property
    def requires_confirmation(self) -> bool:
        return self.task.position == "tool" and not self.requires_user_input

    @property
    def requires_user_input(self) -> bool:
        return self.task.position == "tool" and self.task.answer_schema is not None

    @property
    def user_input_message(self) -> str | None:
        return self.task.prompt if self.requires_user_input else None

    @property
    def external_execution_required(self) -> bool:
        return self.task.position == "external"

    def to_dict(self) -> dict[str, object]:
        """Return the question as plain values."""
        return {**super().to_dict(), "tool_name": self.tool_name, "tool_args": dict(self.tool_args)}

    def reject(self, feedback: str | None = None) -> None:
        """Reject the call: the agent gets the feedback as its result, or the run ends, as the tool's ``on_reject`` says."""
        super().reject(feedback)

    def edit(self, content: object) -> None:
        """Approve the call with other arguments, the whole of them.

        Raises:
            TypeError: they are no map.
        """
        if not isinstance(content, Mapping):
            msg = f"The arguments of {self.tool_name} are a map."
            raise TypeError(msg)
        self._set(DecisionKind.EDITED, content=encode_content(dict(content)))

    def set_external_execution_result(self, result: object) -> None:
        """Provide the result of the call, which was carried out elsewhere."""
        self._set(DecisionKind.PROVIDED, content=encode_content(result))


@dataclass
class ErrorRequirement(Requirement):
    """A question about a failed step: retry it, or skip it."""

    @property
    def error_message(self) -> str:
        return str(self._error.get("message", ""))

    @property
    def error_type(self) -> str:
        return str(self._error.get("type", ""))

    @property
    def _error(self) -> Mapping[str, object]:
        facts = self.task.metadata.get("facts")
        error = facts.get("error") if isinstance(facts, Mapping) else None
        return error if isinstance(error, Mapping) else {}

    def to_dict(self) -> dict[str, object]:
        """Return the question as plain values."""
        return {**super().to_dict(), "error_message": self.error_message, "error_type": self.error_type}

    def retry(self) -> None:
        """Repeat the step.

        Raises:
            ValueError: no retries are left.
        """
        self._choose("retry")

    def skip(self) -> None:
        """Continue with the output of the step before."""
        self._choose("skip")

    def _choose(self, option: str) -> None:
        options = self.task.options or ()
        if option not in options:
            msg = f"{self.step_name} cannot {option} any more; it can {', '.join(options)}."
            raise ValueError(msg)
        self._set(DecisionKind.SELECTED, selected_option=option)


class RunStatus(StrEnum):
    running = "RUNNING"
    paused = "PAUSED"
    completed = "COMPLETED"
    cancelled = "CANCELLED"
    error = "ERROR"


_STATUS = {
    records.RunStatus.RUNNING: RunStatus.running,
    records.RunStatus.PAUSED: RunStatus.paused,
    records.RunStatus.SUCCEEDED: RunStatus.completed,
    records.RunStatus.CANCELLED: RunStatus.cancelled,
}


@dataclass
class WorkflowRunOutput:
    """The state of a run when it was read; ``continue_run`` takes it back with the answers to its requirements.

    Attributes:
        content: The output of the run; of a cancelled run, the reason.
        step_results: The outputs of its steps, in order.
        step_requirements: The questions of the run so far.
        error_requirements: The questions about failed steps.
    """

    run_id: str
    session_id: str | None
    workflow_name: str | None
    status: RunStatus
    content: str | None
    step_results: Sequence[StepOutput] = ()
    step_requirements: list[StepRequirement] = field(default_factory=list)
    error_requirements: list[ErrorRequirement] = field(default_factory=list)

    @classmethod
    def of(cls, builder: StepBuilder, snapshot: RunSnapshot) -> WorkflowRunOutput:
        run = snapshot.run
        output = cls(
            run_id=run.id,
            session_id=snapshot.session_id,
            workflow_name=run.workflow_name,
            status=_STATUS.get(run.status, RunStatus.error),
            content=run.output_text if run.error is None else run.error.message,
            step_results=builder.outputs(snapshot),
        )
        for task in snapshot.tasks:
            if task.status is TaskStatus.CANCELLED:
                continue
            location = builder.locations.get(task.step_path) or PrimitiveLocation(task.step_id, "Step", 0)
            if task.position == "error":
                output.error_requirements.append(ErrorRequirement(task, location))
            elif task.position in positions_of("call"):
                output.step_requirements.append(ToolRequirement(task, location))
            else:
                output.step_requirements.append(StepRequirement(task, location))
        return output

    def to_dict(self) -> dict[str, object]:
        """Return the state as plain values, for JSON."""
        return {
            "run_id": self.run_id,
            "session_id": self.session_id,
            "workflow_name": self.workflow_name,
            "status": self.status.value,
            "content": self.content,
            "is_paused": self.is_paused,
            "pause_kind": self.pause_kind,
            "paused_step_name": self.paused_step_name,
            "paused_step_index": self.paused_step_index,
            "step_results": [each.to_dict() for each in self.step_results],
            "step_requirements": [each.to_dict() for each in self.step_requirements],
            "error_requirements": [each.to_dict() for each in self.error_requirements],
        }

    @property
    def is_paused(self) -> bool:
        return self.status is RunStatus.paused

    @property
    def pause_kind(self) -> str | None:
        """What the run waits for: a question around a ``step``, or one asked inside a step by its ``executor``."""
        active = self.active_requirement
        if active is None:
            return None
        return "executor" if active.is_executor else "step"

    @property
    def active_requirement(self) -> Requirement | None:
        """The latest open question; earlier open questions may be answered too."""
        return max(self.active_requirements, key=lambda each: each.task.id, default=None) if self.is_paused else None

    @property
    def active_requirements(self) -> Sequence[Requirement]:
        return [*self.active_step_requirements, *self.steps_with_errors]

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
        return [each for each in self.active_step_requirements if each.requires_confirmation and not each.is_executor]

    @property
    def steps_requiring_user_input(self) -> Sequence[StepRequirement]:
        return [each for each in self.active_step_requirements if each.requires_user_input and not each.is_executor]

    @property
    def steps_requiring_output_review(self) -> Sequence[StepRequirement]:
        return [each for each in self.active_step_requirements if each.is_post_execution]

    @property
    def steps_requiring_executor_resolution(self) -> Sequence[StepRequirement]:
        return [each for each in self.active_step_requirements if each.is_executor]

    @property
    def steps_requiring_route(self) -> Sequence[StepRequirement]:
        return [each for each in self.active_step_requirements if each.requires_route_selection]

    @property
    def steps_with_errors(self) -> Sequence[ErrorRequirement]:
        return [each for each in self.error_requirements if each.is_open]
