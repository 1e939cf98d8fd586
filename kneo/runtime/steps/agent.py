"""Steps of kind ``agent``."""

from __future__ import annotations

from kneo.agents.turn import run_turn
from kneo.runtime.steps.base import StepOutput
from kneo.spec.models import Agent


async def run(name: str, agent: Agent, text: str) -> StepOutput:
    """Let the agent answer."""
    turn = await run_turn(name, agent, text)
    return StepOutput(
        text=turn.text, facts={"agent_name": name, "model_provider": turn.provider, "model_name": turn.model}
    )
