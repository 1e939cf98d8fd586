"""The primitives of a workflow, the builder that translates them to a spec, and the simplest primitive, the step."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from kneo.runtime.interpreter.node import below
from kneo.runtime.steps.context import StepContext
from kneo.runtime.steps.context import StepOutput as ActivityOutput
from kneo.runtime.steps.functions import FunctionSchemas, as_text
from kneo.sdk.builder import SpecBuilder, call
from kneo.sdk.host import RunSnapshot, Work
from kneo.sdk.workflow.types import (
    NEEDS_REVIEW,
    Executor,
    HumanReview,
    Json,
    Predicate,
    StepInput,
    StepOutput,
    encode_content,
    gates,
    review_of,
)
from kneo.spec.models.agent import Agent

OutputMetadata: TypeAlias = Callable[[str, StepContext], Awaitable[dict[str, str]]]
"""A function that returns the metadata of an output."""


class Primitive(ABC):
    """An element of a workflow.

    Args:
        name: The name of the primitive.
        human_review: The questions to people around it.
        parameters: The parameters of HumanReview, instead of ``human_review``.
        description: The description shown where people choose.

    Raises:
        ValueError, TypeError: the primitive does not support such a review.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        name: str,
        human_review: HumanReview | None,
        parameters: Mapping[str, object],
        description: str | None = None,
    ) -> None:
        self.name = name
        self.description = description
        self.human_review = review_of(self.kind, name, human_review, parameters)

    @abstractmethod
    def to_spec(self, builder: StepBuilder, path: str) -> Json:
        """Return the primitive as a step of the spec."""

    def join_steps(self, _builder: StepBuilder, _path: str) -> list[Json]:
        """Return the steps of the spec that follow the primitive."""
        return []

    def head(self) -> Json:
        """Return the keys that steps of every kind have."""
        return {"id": self.name, **gates(self.kind, self.name, self.human_review)}


@dataclass(frozen=True)
class PrimitiveLocation:
    """A primitive at its position in a workflow."""

    name: str
    kind: str
    index: int
    review: HumanReview | None = None


class StepBuilder(SpecBuilder):
    """The spec of a workflow of primitives, and the inputs and outputs of its steps, read from the records of runs.

    Attributes:
        locations: Primitives by path.
    """

    def __init__(self) -> None:
        super().__init__()
        self.locations: dict[str, PrimitiveLocation] = {}

    def sequence(self, members: Sequence[Primitive], path: str) -> list[Json]:
        """Translate primitives that run one after the other; raises what ``branches`` raises."""
        steps = []
        for member, step in zip(members, self.branches(members, path), strict=True):
            steps += [step, *member.join_steps(self, below(path, member.name))]
        return steps

    def branches(self, members: Sequence[Primitive], path: str) -> list[Json]:
        """Translate primitives that do not follow each other, each to one step.

        Raises:
            ValueError: two primitives have the same name.
        """
        names = [member.name for member in members]
        for name in names:
            if names.count(name) > 1:
                msg = f"Two primitives of one parent are called {name}."
                raise ValueError(msg)
        steps = []
        for index, member in enumerate(members):
            member_path = below(path, member.name)
            self.locations[member_path] = PrimitiveLocation(member.name, member.kind, index, member.human_review)
            steps.append(member.to_spec(self, member_path))
        return steps

    def metadata_step(self, path: str, name: str, metadata: OutputMetadata) -> Json:
        """Return a step that passes its input on and adds metadata to it."""

        async def work(text: str, context: StepContext) -> ActivityOutput:
            return ActivityOutput(text=text, metadata=await metadata(text, context))

        return {"id": name, "kind": "function", "ref": self.function(below(path, name), work)}

    async def ask(self, function: Callable[[StepInput], object], text: str, context: StepContext) -> object:
        """Call the function of a primitive with its input."""
        return await call(function, await self.step_input(text, context))

    async def step_input(self, text: str, context: StepContext) -> StepInput:
        """Return the input of a step."""
        snapshot = await asyncio.to_thread(self.host.snapshot, context.run_id)
        data = snapshot.caller_metadata.get("additional_data")
        additional: Json = dict(data) if isinstance(data, Mapping) else {}
        if context.values:
            additional["user_input"] = dict(context.values)
        if context.previous_output is not None:
            additional |= {"rejection_feedback": context.feedback, "previous_output": context.previous_output}
        return StepInput(
            input=snapshot.run.input_text,
            previous_step_content=text,
            previous_step_outputs={output.step_name or "": output for output in self.outputs(snapshot)},
            additional_data=additional,
            run_id=context.run_id,
            idempotency_key=context.idempotency_key,
        )

    def outputs(self, snapshot: RunSnapshot) -> list[StepOutput]:
        """List the outputs of a run's finished steps in order, as reviewed."""
        return [
            StepOutput(
                snapshot.output(step),
                self.locations[step.step_id].name,
                step.status == "completed",
                step.error.message if step.error else None,
            )
            for step in snapshot.steps
            if step.step_id in self.locations
        ]


class Step(Primitive):
    """A step that an agent or a function executes.

    Args:
        name: The name of the step; the default is the name of its executor or agent.
        agent: An agent of the spec language, or an object with ``run(text)`` or ``arun(text)``.
        executor: ``f(step_input)``, sync or async.
        description: The description shown where people choose.
        human_review: The questions to people around it; ``@pause`` at the executor is the same.
        timeout_seconds: The time limit of one attempt.
        parameters: The parameters of HumanReview, instead of ``human_review``.

    Raises:
        ValueError: the step has neither agent nor executor, or both, or does not support the review.
    """

    kind = "Step"

    def __init__(
        self,
        name: str | None = None,
        *,
        agent: object = None,
        executor: Executor | None = None,
        description: str | None = None,
        human_review: HumanReview | None = None,
        timeout_seconds: int | None = None,
        **parameters: object,
    ) -> None:
        subject = executor if executor is not None else agent
        name = name or str(getattr(subject, "__name__", None) or getattr(agent, "name", "step"))
        problem = None
        if (agent is None) == (executor is None):
            problem = f"Step {name} takes an agent or an executor."
        elif hasattr(subject, "as_step"):
            problem = f"{name} is a workflow: pass it among the steps itself, without a Step around it."
        elif executor is not None and not callable(executor):
            problem = f"The executor of Step {name} is {type(executor).__name__}, which cannot be called."
        if problem is not None:
            raise ValueError(problem)
        self.agent = agent
        self.executor = executor
        self.timeout_seconds = timeout_seconds
        if human_review is None and not parameters:
            human_review = getattr(executor, "human_review", None)
        super().__init__(name, human_review, parameters, description)

    def to_spec(self, builder: StepBuilder, path: str) -> Json:
        step = self.head()
        if self.description:
            step["description"] = self.description
        if self.timeout_seconds is not None:
            step["timeout_seconds"] = self.timeout_seconds
        if isinstance(self.agent, Agent | Mapping):
            return step | {"kind": "agent", "ref": builder.agent(path, self.name, self.agent)}
        return step | {"kind": "function", "ref": builder.function(path, self._work(builder))}

    def _work(self, builder: StepBuilder) -> Work:
        review = self.human_review
        predicate = review.requires_output_review if review is not None else False

        async def work(text: str, context: StepContext) -> ActivityOutput:
            step_input = await builder.step_input(text, context)
            content = await (call(self.executor, step_input) if self.executor else self._run_agent(step_input))
            output = content if isinstance(content, StepOutput) else StepOutput(content)
            metadata = await review_metadata(predicate, output) if callable(predicate) else {}
            return ActivityOutput(text=as_text(output.text, FunctionSchemas()), metadata=metadata)

        return work

    async def _run_agent(self, step_input: StepInput) -> object:
        """Run an agent object of this process."""
        run = getattr(self.agent, "arun", None) or getattr(self.agent, "run", None)
        if run is None:
            msg = f"The agent of Step {self.name} has neither run nor arun."
            raise TypeError(msg)
        response = await call(run, message_for_agent(step_input))
        return getattr(response, "content", response)


def message_for_agent(step_input: StepInput) -> str:
    """Return the message to an agent: the content so far, the values that people filled in, and review feedback."""
    sections = [step_input.previous_step_content or step_input.input]
    data = step_input.additional_data
    values = data.get("user_input")
    if isinstance(values, Mapping) and values:
        lines = [f"- {name}: {encode_content(value)}" for name, value in values.items()]
        sections.append("\n".join(["User preferences:", *lines]))
    previous = data.get("previous_output")
    if previous is not None:
        feedback = data.get("rejection_feedback") or "It was rejected without a reason."
        sections.append(f"Previous output:\n{previous}\n\nReviewer feedback:\n{feedback}")
    return "\n\n".join(sections)


async def review_metadata(predicate: Predicate, output: StepOutput) -> dict[str, str]:
    """Return the metadata that requests a review of an output; a predicate that raises requests one."""
    try:
        needed = bool(await call(predicate, output))
    except Exception:  # noqa: BLE001 - fail closed: the output is reviewed
        needed = True
    return {NEEDS_REVIEW: "true" if needed else "false"}
