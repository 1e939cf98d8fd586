"""The tools of an agent, and the code of its step, which is loaded before a model or a person is asked.

A model cannot help with code that this process may not load, and does not learn what the process may load: the step fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kneo.agents.services import AgentServices
from kneo.agents.tool_calls.denials import find_denial
from kneo.agents.tool_calls.questions import ASK_TOOL
from kneo.agents.turn import Turn
from kneo.errors import Invalid
from kneo.spec.models.agent import Agent, Guardrail
from kneo.spec.models.providers import DUMMY
from kneo.spec.models.spec import Spec, Tool
from kneo.spec.policy import ToolRules
from kneo.spec.tool_kinds import ASK_QUESTION


def offered_tools(turn: Turn, services: AgentServices) -> dict[str, Tool]:
    """Return the tools that an agent is offered, by name, the built-in ``ask_question`` last.

    A tool that the agent's permissions or its environment deny is offered all the same: the denial is the call's result, and
    it is in the trace.

    Raises:
        Invalid: ``tool_not_found``: a name is neither in the spec nor registered; ``middleware_not_found``.
    """
    known = services.middleware | services.turn_middleware.keys()
    unknown = [name for name in turn.agent.middleware if name not in known]
    if unknown:
        msg = f"The agent {turn.agent_name} names the middleware {unknown[0]}, which is not registered in this process."
        raise Invalid(msg, code="middleware_not_found", hint="Register it: ToolRegistry.use or use_around_turns.")
    selection = turn.agent.tools
    included = [name for name in selection.include if name not in selection.exclude] if selection is not None else []
    tools: dict[str, Tool] = {}
    for name in included:
        tool = find_tool(turn, services, name)
        if tool is not None:
            tools[name] = tool
        elif name != ASK_QUESTION:
            msg = f"The agent {turn.agent_name} includes the tool {name}, which is not in the spec and not registered."
            raise Invalid(msg, code="tool_not_found", hint="Declare it under tools, or register it in this process.")
    if ASK_QUESTION in included:
        tools.setdefault(ASK_QUESTION, ASK_TOOL)
    return tools


def find_tool(turn: Turn, services: AgentServices, name: str) -> Tool | None:
    """Return a tool of the spec; without a backing of its own it is the registered one, with what the spec declares."""
    declared, registered = turn.spec.tools.get(name), services.registered(name)
    if declared is None or registered is None or declared.backings:
        return declared or registered
    return registered.model_copy(update={name: getattr(declared, name) for name in declared.model_fields_set})


async def load_code(turn: Turn, services: AgentServices, called: str | None = None) -> None:
    """Load the code of the step that a turn begins: that of its agent, and of the agents behind it.

    What stands behind tools that are denied now is not needed.

    Args:
        turn: The turn.
        services: The services of the process.
        called: The only tool that the turn calls, where no model chooses.

    Raises:
        Invalid: ``tool_not_found``, ``middleware_not_found``; ``implementation_invalid``: the code is missing or cannot be imported.
        Forbidden: ``implementation_forbidden`` or ``implementation_not_pinned``: it is none that this process may load.
    """
    rules = await services.rules(turn.environment)
    code: list[str] = []
    for each in _reached(turn, services, rules, called):
        code += code_of_helpers(each.spec, each.agent)
        for _, tool in _callable(each, services, rules, called if each is turn else None):
            code += tool.implementations()
    await turn.load_code(code)


def _reached(turn: Turn, services: AgentServices, rules: ToolRules, called: str | None) -> Iterator[Turn]:
    """Yield the turn, and one for each agent behind it."""
    spec, waiting, known = turn.spec, [turn], {turn.agent_name}
    agents = {spec.agent.name: spec.agent, **spec.components.agents}
    while waiting:
        each = waiting.pop()
        yield each
        reached = _callable(each, services, rules, called if each is turn else None)
        below = [tool.agent for _, tool in reached if tool.agent is not None]
        for name in (*below, *agents_of_helpers(spec, each.agent)):
            if name in agents and name not in known:
                known.add(name)
                waiting.append(replace(each, agent_name=name, agent=agents[name]))


def _callable(turn: Turn, services: AgentServices, rules: ToolRules, called: str | None) -> Iterator[tuple[str, Tool]]:
    """Yield the tools that the agent of a turn can call now, and the retriever of its memory; or the one that is called."""
    agent = turn.agent
    if called is not None:
        only = offered_tools(turn, services).get(called)
        if only is not None and find_denial(called, only, agent, rules, turn.environment) is None:
            yield called, only
        return
    if not _calls_tools(agent):
        return
    tools = offered_tools(turn, services)
    retriever = agent.memory.retriever if agent.memory is not None else None
    found = find_tool(turn, services, retriever.ref) if retriever is not None else None
    if retriever is not None and found is not None:
        tools[retriever.ref] = found
    for name, tool in tools.items():
        if find_denial(name, tool, agent, rules, turn.environment) is None:
            yield name, tool


def _calls_tools(agent: Agent) -> bool:
    strategy = agent.strategy.type if agent.strategy is not None else "simple"
    return strategy != "simple" and agent.model is not None and agent.model.provider != DUMMY


def code_of_helpers(spec: Spec, agent: Agent) -> Iterator[str]:
    """Yield the functions of an agent's guardrails and memory."""
    for name in (*(str(each.ref) for each in _guardrails(agent) if each.type == "function"), *_memory(agent)):
        if name in spec.components.functions:
            yield spec.components.functions[name].implementation


def agents_of_helpers(spec: Spec, agent: Agent) -> Iterator[str]:
    """Yield the names of the agents of an agent's guardrails and memory."""
    for name in (*(str(each.ref) for each in _guardrails(agent) if each.type == "agent"), *_memory(agent)):
        if name in spec.components.agents or name == spec.agent.name:
            yield name


def _guardrails(agent: Agent) -> Iterator[Guardrail]:
    for stage in agent.guardrails.stages().values() if agent.guardrails is not None else ():
        yield from stage


def _memory(agent: Agent) -> Iterator[str]:
    memory = agent.memory
    yield from (part.ref for part in (memory.summarizer, memory.retriever) if part is not None) if memory else ()
