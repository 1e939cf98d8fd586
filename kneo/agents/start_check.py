"""The check of a run's agents at its start: models that can be asked, and libraries that are installed on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import cache

from kneo.agents.providers import OperatorConnections, check_models
from kneo.agents.tools.kinds import check_kind
from kneo.errors import Invalid
from kneo.spec.coverage.exposure import callable_tools
from kneo.spec.models.agent import Agent
from kneo.spec.models.spec import Spec
from kneo.spec.policy import ModelRules
from kneo.spec.tool_kinds import TOOL_KINDS, Library


def missing_libraries() -> frozenset[Library]:
    """Return the libraries of tools that are not installed, without importing one."""
    needed = (kind.library for kind in TOOL_KINDS.values() if kind.library is not None)
    return frozenset(library for library in needed if importlib.util.find_spec(library.module) is None)


def check_agents(
    spec: Spec,
    used: Mapping[str, Agent],
    operator: OperatorConnections | None,
    rules: ModelRules | None,
    *,
    asks_models: bool = True,
    missing: Callable[[], frozenset[Library]] = missing_libraries,
) -> None:
    """Refuse agents that cannot work on this machine, also those behind their tools.

    Args:
        spec: The spec, with the tools of the agents.
        used: The agents that the steps of the run use, by the names for messages.
        operator: The connections of this machine; ``None`` where another machine executes the run, which then checks them.
        rules: The rules for models of the run's environment; ``None`` where there is no environment.
        asks_models: Whether the agents of the steps ask their models; a call of one of their tools does not.
        missing: Returns the libraries of tools that are not installed.

    Raises:
        Invalid: ``provider_not_configured``, ``model_not_allowed``, ``model_host_denied``, ``mcp_not_installed``,
            ``a2a_not_installed``, or ``spec_invalid``: a skill has no content.
    """
    for name, agent in _reached(spec, used):
        check_skills(name, agent, spec)
        if asks_models if name in used else agent.model is not None:
            check_models(name, agent, operator, rules)
        if operator is not None:
            check_libraries(name, agent, spec, missing=missing)


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
    missing: Callable[[], frozenset[Library]] = missing_libraries,
) -> None:
    """Refuse an agent with tools whose library or kind is not installed.

    Raises:
        Invalid: ``mcp_not_installed`` or ``a2a_not_installed``.
    """
    lacking = cache(missing)
    for tool in callable_tools(agent):
        declared = spec.tools.get(tool)
        if declared is None:
            continue
        library = declared.kind.library
        if library is not None and library in lacking():
            msg = f"The agent {name} needs the tool {tool}, and the library of {library.title} is not installed here."
            raise Invalid(msg, code=library.code, hint=library.hint, lacking="library")
        check_kind(name, tool, declared)


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
