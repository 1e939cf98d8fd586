"""Primitives that contain primitives: sequences, parallel branches, conditions, loops and routers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias, runtime_checkable

from kneo.embed.steps import StepContext, below
from kneo.embed.steps import StepOutput as ActivityOutput
from kneo.sdk.builder import Json, call
from kneo.sdk.workflow.step import Primitive, Step, StepBuilder, review_metadata
from kneo.sdk.workflow.types import HumanReview, StepInput, StepOutput


@runtime_checkable
class HasSteps(Protocol):
    """A workflow that can be a step of another one."""

    def as_step(self) -> Primitive: ...


Member: TypeAlias = Primitive | HasSteps | Callable[[StepInput], object]
"""A primitive, a workflow, or a function that becomes a Step."""

Evaluator: TypeAlias = bool | Callable[[StepInput], object]
Selector: TypeAlias = Callable[[StepInput], object]
EndCondition: TypeAlias = Callable[[list[StepOutput]], object | Awaitable[object]]

DONE = "done"
"""The metadata key that ends a loop."""


def as_primitives(members: Sequence[Member]) -> list[Primitive]:
    """Convert members of a workflow to primitives.

    Raises:
        ValueError: a member is not a primitive, a function or a workflow.
    """
    return [_as_primitive(member) for member in members]


def _as_primitive(member: Member) -> Primitive:
    if isinstance(member, Primitive):
        return member
    return member.as_step() if isinstance(member, HasSteps) else Step(executor=member)


class Steps(Primitive):
    """Steps that run one after the other and count as one."""

    kind = "Steps"

    def __init__(
        self,
        name: str,
        steps: Sequence[Member],
        *,
        description: str | None = None,
        human_review: HumanReview | None = None,
        **parameters: object,
    ) -> None:
        super().__init__(name, human_review, parameters, description)
        self.steps = as_primitives(steps)

    def to_spec(self, builder: StepBuilder, path: str) -> Json:
        return self.head() | {"kind": "steps", "steps": builder.sequence(self.steps, path)}


class Parallel(Primitive):
    """Steps that run at the same time on the same input. It supports no review; the steps in it do."""

    kind = "Parallel"

    def __init__(
        self, *steps: Member, name: str = "parallel", human_review: HumanReview | None = None, **parameters: object
    ) -> None:
        super().__init__(name, human_review, parameters)
        # A parallel branch needs the step that joins its own branches behind it.
        self.steps = [Steps(each.name, [each]) if isinstance(each, Parallel) else each for each in as_primitives(steps)]

    def to_spec(self, builder: StepBuilder, path: str) -> Json:
        return {"id": self.name, "kind": "parallel", "steps": builder.branches(self.steps, path)}

    def branch_names(self) -> Sequence[str]:
        return [step.name for step in self.steps]

    def join_steps(self, builder: StepBuilder, path: str) -> list[Json]:
        """Return the step that joins the outputs of the branches for the next step and its reviewers."""

        async def join(text: str, context: StepContext) -> ActivityOutput:
            if len(context.outputs) > 1:
                text = "\n\n".join(f"## {name}\n\n{output}" for name, output in context.outputs.items())
            return ActivityOutput(text=text)

        return [{"id": f"{self.name}.join", "kind": "function", "ref": builder.function(f"{path}.join", join)}]


class Condition(Primitive):
    """Steps that run when an evaluator is true, and other steps otherwise; with a confirmation, a person decides."""

    kind = "Condition"

    def __init__(
        self,
        name: str,
        evaluator: Evaluator = True,
        *,
        steps: Sequence[Member],
        else_steps: Sequence[Member] = (),
        human_review: HumanReview | None = None,
        **parameters: object,
    ) -> None:
        super().__init__(name, human_review, parameters)
        self.evaluator = evaluator
        self.steps = as_primitives(steps)
        self.else_steps = as_primitives(else_steps)

    def to_spec(self, builder: StepBuilder, path: str) -> Json:
        then, otherwise = builder.sequence(self.steps, path), builder.sequence(self.else_steps, path)
        condition = self.head() | {"kind": "condition", "steps": then, "else": otherwise}
        evaluator = self.evaluator
        if self.human_review is not None and self.human_review.requires_confirmation:
            return condition
        if isinstance(evaluator, bool):
            return condition | {"when": {"type": "always" if evaluator else "never"}}

        async def evaluate(text: str, context: StepContext) -> ActivityOutput:
            return ActivityOutput(text="steps" if await builder.ask(evaluator, text, context) else "else")

        choices = {"steps": {"steps": then}, "else": {"steps": otherwise}}
        selector = builder.function(f"{path}.evaluate", evaluate)
        return self.head() | {"kind": "router", "choices": choices, "selector": selector}


class Loop(Primitive):
    """Steps that repeat until ``end_condition(outputs of the round)`` is true, at most ``max_iterations`` times.

    The outputs are those of ``StepInput.previous_step_outputs``: as reviewed, a container's by its name.
    """

    kind = "Loop"

    def __init__(
        self,
        name: str,
        steps: Sequence[Member],
        *,
        max_iterations: int = 3,
        end_condition: EndCondition | None = None,
        human_review: HumanReview | None = None,
        **parameters: object,
    ) -> None:
        super().__init__(name, human_review, parameters)
        self.steps = as_primitives(steps)
        self.max_iterations = max_iterations
        self.end_condition = end_condition

    def to_spec(self, builder: StepBuilder, path: str) -> Json:
        steps = builder.sequence(self.steps, path)
        loop = self.head() | {"kind": "loop", "max_iterations": self.max_iterations, "steps": steps}
        end_condition = self.end_condition
        if end_condition is None:
            return loop

        async def evaluate(text: str, context: StepContext) -> dict[str, str]:
            snapshot = await builder.read(context)
            this_round = f"{context.location.rpartition('/')[0]}/"
            records = [step for step in snapshot.steps if step.location.startswith(this_round)]
            contents = {
                step.name: builder.content(replace(snapshot, steps=records), below(path, step.name))
                for step in self.steps
            }
            outputs = [StepOutput(content, name) for name, content in contents.items() if content is not None]
            return {DONE: "true" if await call(end_condition, outputs or [StepOutput(text)]) else "false"}

        steps.append(builder.metadata_step(path, f"{self.name}.end", evaluate))
        return loop | {"until": {"type": "metadata_equals", "key": DONE, "value": "true"}}


class Router(Primitive):
    """One of several choices, selected by a function that returns a name or a primitive, or by a person."""

    kind = "Router"

    def __init__(
        self,
        name: str,
        choices: Sequence[Member],
        *,
        selector: Selector | None = None,
        human_review: HumanReview | None = None,
        **parameters: object,
    ) -> None:
        super().__init__(name, human_review, parameters)
        self.choices = as_primitives(choices)
        self.selector = selector
        if selector is None and not (self.human_review and self.human_review.requires_user_input):
            msg = f"Router {name} needs a selector, or requires_user_input=True so that a person chooses."
            raise ValueError(msg)

    def to_spec(self, builder: StepBuilder, path: str) -> Json:
        predicate = self.human_review.requires_output_review if self.human_review is not None else False
        choices: Json = {}
        for choice, step in zip(self.choices, builder.branches(self.choices, path), strict=True):
            steps = [step, *choice.join_steps(builder, below(path, choice.name))]
            if callable(predicate):

                async def review(text: str, _context: StepContext) -> dict[str, str]:
                    return await review_metadata(predicate, StepOutput(text))

                steps.append(builder.metadata_step(path, f"{choice.name}.review", review))
            choices[choice.name] = {
                "steps": steps,
                **({"description": choice.description} if choice.description else {}),
            }
        router = self.head() | {"kind": "router", "choices": choices}
        selector = self.selector
        if selector is None:
            return router

        async def select(text: str, context: StepContext) -> ActivityOutput:
            choice = await builder.ask(selector, text, context)
            if isinstance(choice, list | tuple) and len(choice) == 1:
                choice = choice[0]
            return ActivityOutput(text=choice.name if isinstance(choice, Primitive) else str(choice))

        return router | {"selector": builder.function(f"{path}.select", select)}
