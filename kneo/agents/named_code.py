"""The functions of modules that a spec names, by their dotted names. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import TypeAlias

from kneo.spec.models.agent import Agent, Guardrail
from kneo.spec.models.spec import Spec

LoadCode: TypeAlias = Callable[[Collection[str]], Awaitable[None]]
"""Loads functions by their dotted names, or raises why this process may not call one of them."""


async def load_nothing(_implementations: Collection[str]) -> None:
    """Load no code, where a turn has no modules."""


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
