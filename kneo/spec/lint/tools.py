"""Which tools agents select, and what is behind them."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.diagnostics import Diagnostic, error, warning
from kneo.spec.index import SpecIndex


def tool_selections(view: SpecIndex) -> Iterator[Diagnostic]:
    """Agents select tools that exist, and do not exclude what they include."""
    for at in view.agents:
        selected = at.agent.tools
        if selected is None:
            continue
        path = (*at.path, "tools")
        for name in sorted(frozenset(selected.include) & frozenset(selected.exclude)):
            yield error("E_TOOL_CONFLICT", f"The tool {name} is both included and excluded.", path)
        for name in dict.fromkeys(selected.include):
            if name not in view.tool_names:
                hint = view.hints.near(name, view.tool_names) or f"Declare {name} under tools, or register it."
                message = f"The tool {name} is neither in tools nor registered by the platform."
                yield error("E_TOOL_REF", message, path, suggestion=hint, aliases=("E_UNKNOWN_TOOL",))


def skill_selections(view: SpecIndex) -> Iterator[Diagnostic]:
    """Agents select skills that exist."""
    for at in view.agents:
        for name in dict.fromkeys(at.agent.skills):
            if name not in view.spec.skills:
                hint = view.hints.near(name, view.spec.skills) or f"Declare {name} under skills."
                yield error("E_SKILL_REF", f"The skill {name} is not in skills.", (*at.path, "skills"), suggestion=hint)


def tool_backings(view: SpecIndex) -> Iterator[Diagnostic]:
    """Every tool has exactly one thing behind it, and agents behind tools exist.

    A tool that the platform registers, or whose calls somebody outside carries out, needs nothing of its own.
    """
    for name, tool in view.spec.tools.items():
        path = ("tools", name)
        backings = [
            key
            for key, value in (("implementation", tool.implementation), ("mcp", tool.mcp), ("agent", tool.agent))
            if value is not None
        ]
        answered_outside = tool.review is not None and tool.review.external is not None
        if not backings and not answered_outside and name not in view.context.tools:
            hint = "Give it one of implementation, mcp and agent."
            yield error("E_TOOL_NO_BACKING", f"Nothing is behind the tool {name}.", path, suggestion=hint)
        if len(backings) > 1:
            message = f"The tool {name} has {' and '.join(backings)}; a call can only go to one of them."
            yield error("E_TOOL_MULTIPLE_BACKINGS", message, path)
        if tool.agent is None:
            continue
        agents = view.spec.components.agents
        if tool.agent not in agents:
            hint = view.hints.near(tool.agent, agents) or f"Declare {tool.agent} in components.agents."
            message = f"The agent {tool.agent} behind the tool {name} is not in components.agents."
            yield error("E_AGENT_TOOL_UNKNOWN_AGENT", message, (*path, "agent"), suggestion=hint)
        if tool.parameters:
            message = f"The tool {name} is an agent, which is given text; its parameters are ignored."
            yield warning("W_AGENT_TOOL_PARAMETERS_IGNORED", message, (*path, "parameters"))
