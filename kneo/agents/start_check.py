"""The check of a run's agents at its start: models that can be asked, and libraries that are installed on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping

from kneo.agents.providers import OperatorConnections, check_models
from kneo.errors import Invalid
from kneo.spec.coverage.exposure import callable_tools
from kneo.spec.models.agent import Agent
from kneo.spec.models.spec import Spec
from kneo.spec.policy import ModelRules

MCP_HINT = "Install it: pip install 'kneo[mcp]'."
A2A_HINT = "Install it: pip install 'kneo[a2a]'."


def has_mcp() -> bool:
    """Tell whether the library of MCP servers is installed, without importing it."""
    return importlib.util.find_spec("mcp") is not None


def has_a2a() -> bool:
    """Tell whether the library of Agent2Agent is installed, without importing it."""
    return importlib.util.find_spec("a2a") is not None


def check_agents(
    spec: Spec,
    used: Mapping[str, Agent],
    operator: OperatorConnections | None,
    rules: ModelRules | None,
    *,
    mcp_installed: Callable[[], bool] = has_mcp,
    a2a_installed: Callable[[], bool] = has_a2a,
) -> None:
    """Refuse agents that cannot work on this machine, also those behind their tools.

    Args:
        spec: The spec, with the tools of the agents.
        used: The agents that the steps of the run use, by the names for messages.
        operator: The connections of this machine; ``None`` where another machine executes the run, which then checks them.
        rules: The rules for models of the run's environment; ``None`` where there is no environment.
        mcp_installed: Whether the library of MCP servers is installed.
        a2a_installed: Whether the library of Agent2Agent is installed.

    Raises:
        Invalid: ``provider_not_configured``, ``model_not_allowed``, ``model_host_denied``, ``mcp_not_installed``,
            ``a2a_not_installed``, or ``spec_invalid``: a skill has no content.
    """
    for name, agent in _reached(spec, used):
        check_skills(name, agent, spec)
        if name in used or agent.model is not None:
            check_models(name, agent, operator, rules)
        if operator is not None:
            check_libraries(name, agent, spec, mcp_installed=mcp_installed, a2a_installed=a2a_installed)


def check_skills(name: str, agent: Agent, spec: Spec) -> None:
    """Refuse an agent with a skill whose content is not in the spec.

    Raises:
        Invalid: ``spec_invalid``.
    """
    for skill in agent.skills:
        if skill not in spec.skills or spec.skills[skill].content is None:
            msg = f"The agent {name} has the skill {skill}, whose content is not in the spec."
            raise Invalid(msg, code="spec_invalid", hint="Run the resolved spec: kneo spec resolve writes it.")


def check_libraries(
    name: str,
    agent: Agent,
    spec: Spec,
    *,
    mcp_installed: Callable[[], bool] = has_mcp,
    a2a_installed: Callable[[], bool] = has_a2a,
) -> None:
    """Refuse an agent with tools of MCP servers, or remote agents, where their library is not installed.

    Raises:
        Invalid: ``mcp_not_installed`` or ``a2a_not_installed``.
    """
    for tool in callable_tools(agent):
        declared = spec.tools.get(tool)
        if declared is not None and declared.mcp is not None and not mcp_installed():
            msg = f"The agent {name} needs the tool {tool} of an MCP server, whose library is not installed here."
            raise Invalid(msg, code="mcp_not_installed", hint=MCP_HINT, lacking="library")
        if declared is not None and declared.a2a is not None and not a2a_installed():
            msg = (
                f"The agent {name} needs the remote agent {tool}, and the library of Agent2Agent is not installed here."
            )
            raise Invalid(msg, code="a2a_not_installed", hint=A2A_HINT, lacking="library")


def _reached(spec: Spec, used: Mapping[str, Agent]) -> Iterator[tuple[str, Agent]]:
    """Yield each agent and the agents behind its tools, once."""
    waiting, known = list(used.items()), set(used)
    while waiting:
        name, agent = waiting.pop(0)
        yield name, agent
        for tool in callable_tools(agent):
            below = spec.tools[tool].agent if tool in spec.tools else None
            if below is not None and below not in known and below in spec.components.agents:
                known.add(below)
                waiting.append((below, spec.components.agents[below]))
