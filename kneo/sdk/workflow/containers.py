"""What holds steps: in a row, at the same time, one way or the other, again and again, one of several."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from kneo.runtime.interpreter.node import below
from kneo.runtime.steps.context import StepContext
from kneo.runtime.steps.context import StepOutput as Outcome
from kneo.sdk.code import Work, call
from kneo.sdk.workflow.plan import Json, Plan, Primitive
from kneo.sdk.workflow.reviewing import NEEDS_REVIEW, chosen, gates
from kneo.sdk.workflow.step import Step, asks
from kneo.sdk.workflow.types import HumanReview, StepInput, StepOutput


@runtime_checkable
class HasSteps(Protocol):
    """A workflow that can be a step of another one."""

    def as_step(self) -> Primitive: ...


Member: TypeAlias = Primitive | HasSteps | Callable[[StepInput], object]
"""A primitive, a workflow, or a function that becomes a Step of its name."""


def as_primitives(members: Sequence[Member]) -> list[Primitive]:
    """Make steps of functions, and of other workflows.

    Raises:
        ValueError: a member is none of these.
    """
    return [_as_primitive(each) for each in members]


def _as_primitive(member: Member) -> Primitive:
    if isinstance(member, Primitive):
        return member
    return member.as_step() if isinstance(member, HasSteps) else Step(executor=member)


class Steps(Primitive):
    """Steps in a row that count as one."""

    def __init__(
        self,
        name: str,
        steps: Sequence[Member],
        *,
        description: str | None = None,
        human_review: HumanReview | None = None,
        **flat: object,
    ) -> None:
        self.name = name
        self.steps = as_primitives(steps)
        self.description = description
        self.human_review = chosen("Steps", name, human_review, flat)

    def written(self, plan: Plan, path: str) -> Json:
        inner = plan.all_of(self.steps, path)
        return {"id": self.name, "kind": "steps", "steps": inner, **gates("Steps", self.name, self.human_review)}


class Parallel(Primitive):
    """Steps at the same time on the same input. It asks nothing itself; the steps in it may."""

    def __init__(
        self, *steps: Member, name: str = "parallel", human_review: HumanReview | None = None, **flat: object
    ) -> None:
        self.name = name
        # What branches of a branch said is put together by a step behind it.
        self.steps = [Steps(each.name, [each]) if isinstance(each, Parallel) else each for each in as_primitives(steps)]
        self.human_review = chosen("Parallel", name, human_review, flat)

    def written(self, plan: Plan, path: str) -> Json:
        return {"id": self.name, "kind": "parallel", "steps": plan.branches(self.steps, path)}

    def tail(self, plan: Plan, path: str) -> list[Json]:
        """Write the step that puts together what the branches said: all of it reaches the next step and its reviewers."""

        async def work(text: str, context: StepContext) -> Outcome:
            outputs = context.outputs
            if len(outputs) > 1:
                text = "\n\n".join(f"## {name}\n\n{said}" for name, said in outputs.items())
            return Outcome(text=text)

        return [{"id": f"{self.name}.join", "kind": "function", "ref": plan.function(f"{path}.join", work)}]


Evaluator: TypeAlias = bool | Callable[[StepInput], object]


class Condition(Primitive):
    """Steps that run when an evaluator says so, and others when it does not; where people are asked, they decide."""

    def __init__(
        self,
        name: str,
        evaluator: Evaluator = True,
        *,
        steps: Sequence[Member],
        else_steps: Sequence[Member] = (),
        human_review: HumanReview | None = None,
        **flat: object,
    ) -> None:
        self.name = name
        self.evaluator = evaluator
        self.steps = as_primitives(steps)
        self.else_steps = as_primitives(else_steps)
        self.human_review = chosen("Condition", name, human_review, flat)

    def written(self, plan: Plan, path: str) -> Json:
        then, otherwise = plan.all_of(self.steps, path), plan.all_of(self.else_steps, path)
        found: Json = {"id": self.name, **gates("Condition", self.name, self.human_review)}
        if self.human_review is not None and self.human_review.requires_confirmation:
            return found | {"kind": "condition", "steps": then, "else": otherwise}
        if isinstance(self.evaluator, bool):
            when = {"type": "always" if self.evaluator else "never"}
            return found | {"kind": "condition", "when": when, "steps": then, "else": otherwise}
        choices = {"steps": {"steps": then}, "else": {"steps": otherwise}}
        return found | {
            "kind": "router",
            "choices": choices,
            "selector": plan.function(f"{path}.evaluate", self._work(plan)),
        }

    def _work(self, plan: Plan) -> Work:
        evaluator = self.evaluator
        assert not isinstance(evaluator, bool)

        async def work(text: str, context: StepContext) -> Outcome:
            return Outcome(text="steps" if await call(evaluator, await plan.given(text, context)) else "else")

        return work


EndCondition: TypeAlias = Callable[[list[StepOutput]], object | Awaitable[object]]

DONE = "done"


class Loop(Primitive):
    """Steps that repeat until ``end_condition(outputs of the round)`` is true or the rounds are used up."""

    def __init__(
        self,
        name: str,
        steps: Sequence[Member],
        *,
        max_iterations: int = 3,
        end_condition: EndCondition | None = None,
        human_review: HumanReview | None = None,
        **flat: object,
    ) -> None:
        self.name = name
        self.steps = as_primitives(steps)
        self.max_iterations = max_iterations
        self.end_condition = end_condition
        self.human_review = chosen("Loop", name, human_review, flat)

    def written(self, plan: Plan, path: str) -> Json:
        inner = plan.all_of(self.steps, path)
        found: Json = {"id": self.name, "kind": "loop", "max_iterations": self.max_iterations}
        if self.end_condition is not None:
            inner.append(probe(plan, path, f"{self.name}.end", self._judged(plan, path)))
            found["until"] = {"type": "metadata_equals", "key": DONE, "value": "true"}
        return found | {"steps": inner, **gates("Loop", self.name, self.human_review)}

    def _judged(self, plan: Plan, path: str) -> Judge:
        end = self.end_condition
        assert end is not None
        inside = {below(path, step.name) for step in self.steps}

        async def judged(text: str, context: StepContext) -> dict[str, str]:
            assert plan.host is not None
            standing = plan.host.look(context.run_id)
            latest = {step.step_id: step for step in standing.steps if step.step_id in inside}
            outputs = [
                StepOutput(found.output_text, step.name)
                for step in self.steps
                if (found := latest.get(below(path, step.name))) is not None
            ]
            done = await call(end, outputs or [StepOutput(text)])
            return {DONE: "true" if done else "false"}

        return judged


Judge: TypeAlias = Callable[[str, StepContext], Awaitable[dict[str, str]]]


def probe(plan: Plan, path: str, name: str, judge: Judge) -> Json:
    """Write a step that hands on what it is given and only adds what somebody finds out about it."""

    async def work(text: str, context: StepContext) -> Outcome:
        return Outcome(text=text, metadata=await judge(text, context))

    return {"id": name, "kind": "function", "ref": plan.function(below(path, name), work)}


Selector: TypeAlias = Callable[[StepInput], object]


class Router(Primitive):
    """One of several ways, chosen by a selector that returns a name or a primitive, or by a person."""

    def __init__(
        self,
        name: str,
        choices: Sequence[Member],
        *,
        selector: Selector | None = None,
        human_review: HumanReview | None = None,
        **flat: object,
    ) -> None:
        self.name = name
        self.choices = as_primitives(choices)
        self.selector = selector
        self.human_review = chosen("Router", name, human_review, flat)
        asked = self.human_review is not None and self.human_review.requires_user_input
        if selector is None and not asked:
            msg = f"Router {name} needs a selector, or requires_user_input=True so that a person chooses."
            raise ValueError(msg)

    def written(self, plan: Plan, path: str) -> Json:
        inner = plan.branches(self.choices, path)
        judge = self.human_review.requires_output_review if self.human_review is not None else False
        ways: dict[str, object] = {}
        for choice, step in zip(self.choices, inner, strict=True):
            tail = choice.tail(plan, below(path, choice.name))
            if callable(judge):
                tail = [*tail, probe(plan, path, f"{choice.name}.review", _reviewed(judge))]
            about = getattr(choice, "description", None)
            ways[choice.name] = {"steps": [step, *tail], **({"description": about} if about else {})}
        found: Json = {"id": self.name, "kind": "router", "choices": ways}
        if self.selector is not None:
            found["selector"] = plan.function(f"{path}.select", self._work(plan))
        return found | gates("Router", self.name, self.human_review)

    def _work(self, plan: Plan) -> Work:
        selector = self.selector
        assert selector is not None

        async def work(text: str, context: StepContext) -> Outcome:
            chosen_ = await call(selector, await plan.given(text, context))
            if isinstance(chosen_, list | tuple) and len(chosen_) == 1:
                chosen_ = chosen_[0]
            return Outcome(text=chosen_.name if isinstance(chosen_, Primitive) else str(chosen_))

        return work


def _reviewed(judge: Callable[[StepOutput], object]) -> Judge:
    async def judged(text: str, _context: StepContext) -> dict[str, str]:
        return {NEEDS_REVIEW: await asks(judge, StepOutput(text))}

    return judged
