"""A step: an agent or a function, and what people are asked around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kneo.runtime.steps.context import StepContext
from kneo.runtime.steps.context import StepOutput as Outcome
from kneo.runtime.steps.functions import FunctionSchemas, as_text
from kneo.sdk.code import call
from kneo.sdk.workflow.plan import Json, Plan, Primitive
from kneo.sdk.workflow.reviewing import NEEDS_REVIEW, chosen, gates
from kneo.sdk.workflow.types import Executor, HumanReview, Predicate, StepInput, StepOutput, spelled
from kneo.spec.models import Agent


class Step(Primitive):
    """One thing that is done.

    Args:
        name: What it is called; left out: what its executor is called.
        agent: An agent of the spec language, or an object with ``run(text)`` or ``arun(text)``.
        executor: ``f(step_input)``, sync or async.
        description: What people are told of it where they choose.
        human_review: What people are asked around it; ``@pause`` on the executor says the same.
        timeout_seconds: Time for one try.
        flat: The parameters of HumanReview, written here instead.

    Raises:
        ValueError: it has neither agent nor executor, or both, or asks for what means nothing at a step.
    """

    kind: ClassVar[str] = "Step"

    def __init__(
        self,
        name: str | None = None,
        *,
        agent: object = None,
        executor: Executor | None = None,
        description: str | None = None,
        human_review: HumanReview | None = None,
        timeout_seconds: int | None = None,
        **flat: object,
    ) -> None:
        self.name = name or str(
            getattr(executor if executor is not None else agent, "__name__", None) or getattr(agent, "name", "step")
        )
        if (agent is None) == (executor is None):
            msg = f"Step {self.name} takes an agent or an executor."
            raise ValueError(msg)
        if hasattr(agent, "as_step") or hasattr(executor, "as_step"):
            msg = f"{self.name} is a workflow: put it among the steps itself, without a Step around it."
            raise ValueError(msg)
        if executor is not None and not callable(executor):
            msg = f"The executor of Step {self.name} is {type(executor).__name__}, which cannot be called."
            raise ValueError(msg)
        self.agent = agent
        self.executor = executor
        self.description = description
        self.timeout_seconds = timeout_seconds
        if human_review is None and not flat:
            human_review = getattr(executor, "human_review", None)
        self.human_review = chosen("Step", self.name, human_review, flat)

    def written(self, plan: Plan, path: str) -> Json:
        found: Json = {"id": self.name, **gates("Step", self.name, self.human_review)}
        if self.description:
            found["description"] = self.description
        if self.timeout_seconds is not None:
            found["timeout_seconds"] = self.timeout_seconds
        if isinstance(self.agent, Agent | Mapping):
            agent = self.agent
            tree = agent.model_dump(by_alias=True, exclude_unset=True) if isinstance(agent, Agent) else dict(agent)
            plan.components["agents"][path] = {"name": self.name, **tree}
            return found | {"kind": "agent", "ref": path}
        return found | {"kind": "function", "ref": plan.function(path, self._work(plan))}

    def _work(self, plan: Plan):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a Work
        review = self.human_review
        judge = review.requires_output_review if review is not None else False

        async def work(text: str, context: StepContext) -> Outcome:
            given = await plan.given(text, context)
            said = await (call(self.executor, given) if self.executor is not None else self._ask(given))
            output = said if isinstance(said, StepOutput) else StepOutput(said)
            metadata = {NEEDS_REVIEW: await asks(judge, output)} if callable(judge) else {}
            return Outcome(text=as_text(output.text, FunctionSchemas()), metadata=metadata)

        return work

    async def _ask(self, given: StepInput) -> object:
        """Let an agent object of this process answer."""
        ask = getattr(self.agent, "arun", None) or getattr(self.agent, "run", None)
        if ask is None:
            msg = f"The agent of Step {self.name} has neither run nor arun."
            raise TypeError(msg)
        said = await call(ask, message_for_agent(given))
        return getattr(said, "content", said)


def message_for_agent(given: StepInput) -> str:
    """Write what an agent is told: the content so far, what people filled in, and what a reviewer had to say."""
    parts = [given.previous_step_content or given.input]
    filled = given.additional_data.get("user_input")
    if isinstance(filled, Mapping) and filled:
        parts.append("User preferences:\n" + "\n".join(f"- {name}: {spelled(value)}" for name, value in filled.items()))
    previous = given.additional_data.get("previous_output")
    if previous is not None:
        feedback = given.additional_data.get("rejection_feedback") or "It was rejected without a reason."
        parts.append(f"Previous output:\n{previous}\n\nReviewer feedback:\n{feedback}")
    return "\n\n".join(parts)


async def asks(judge: Predicate, output: StepOutput) -> str:
    """Say whether an output has to be looked at; where that cannot be found out, it has."""
    try:
        return "true" if await call(judge, output) else "false"
    except Exception:  # noqa: BLE001 - whatever it is, nobody has found the output harmless
        return "true"
