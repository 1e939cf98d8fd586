"""One turn of an agent: text in, text out."""

from __future__ import annotations

from dataclasses import dataclass

from kneo.agents import dummy
from kneo.errors import Invalid
from kneo.spec.models.agent import AVAILABLE_PROVIDERS, Agent


@dataclass(frozen=True)
class Turn:
    text: str
    provider: str
    model: str


def check_provider(name: str, agent: Agent) -> None:
    """Refuse an agent that no provider could answer for, before anything runs.

    Raises:
        Invalid: the agent has no model, or its provider is not available here. The dummy never stands in for it.
    """
    available = ", ".join(AVAILABLE_PROVIDERS)
    if agent.model is None:
        msg = f"The agent {name} has no model."
        raise Invalid(msg, code="provider_not_configured", hint="Give it model: {provider: dummy, name: dummy}.")
    if agent.model.provider not in AVAILABLE_PROVIDERS:
        msg = f"The agent {name} needs the provider {agent.model.provider!r}, which this version does not have."
        raise Invalid(msg, code="provider_not_configured", hint=f"Available here: {available}.")


async def run_turn(name: str, agent: Agent, text: str) -> Turn:
    """Let an agent answer.

    Raises:
        Invalid: see ``check_provider``.
    """
    check_provider(name, agent)
    assert agent.model is not None
    return Turn(dummy.reply(text), agent.model.provider, agent.model.name)
