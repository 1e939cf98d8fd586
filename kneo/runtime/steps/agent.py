"""Steps of kind ``agent``, and of kind ``guardrail``, which ask an agent too."""

from __future__ import annotations

from kneo.agents.turn import run_turn
from kneo.runtime.steps.base import StepContext, StepOutput
from kneo.spec.models import Agent


async def run(name: str, agent: Agent, text: str, context: StepContext) -> StepOutput:
    """Let the agent answer."""
    turn = await run_turn(name, agent, _with_feedback(_with_values(text, context), context))
    return StepOutput(
        text=turn.text, facts={"agent_name": name, "model_provider": turn.provider, "model_name": turn.model}
    )


def _with_values(text: str, context: StepContext) -> str:
    if not context.values:
        return text
    listed = "\n".join(f"- {name}: {value}" for name, value in context.values.items())
    return f"{text}\n\nUser input:\n{listed}"


def _with_feedback(text: str, context: StepContext) -> str:
    if context.previous_output is None:
        return text
    feedback = context.feedback or "It was rejected without a reason."
    return f"{text}\n\nPrevious output:\n{context.previous_output}\n\nReviewer feedback:\n{feedback}"
