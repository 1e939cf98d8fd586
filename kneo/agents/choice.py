"""Agents that choose one of several names, for routers. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from kneo.spec.models.agent import Agent, Strategy


def choosing(agent: Agent, choices: Mapping[str, str | None]) -> Agent:
    """Return an agent that answers with one of the choices; it is asked once, without tools and memory."""
    schema = {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(choices)}},
        "required": ["choice"],
        "additionalProperties": False,
    }
    changes = {"strategy": Strategy(type="simple"), "tools": None, "memory": None, "output_schema": schema}
    return agent.model_copy(update=changes)


def choice_message(text: str, choices: Mapping[str, str | None]) -> str:
    """Return the input of an agent that chooses: the text, then the choices with their descriptions."""
    listed = "\n".join(f"- {name}: {about}" if about else f"- {name}" for name, about in choices.items())
    return f"{text}\n\nChoose what comes next. Answer with one of these names:\n{listed}"
