"""Providers of models."""

from __future__ import annotations

from kneo.errors import Invalid
from kneo.spec.models.agent import AVAILABLE_PROVIDERS, Agent


def check_provider(name: str, agent: Agent) -> None:
    """Refuse an agent whose provider is not available, before anything runs.

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
