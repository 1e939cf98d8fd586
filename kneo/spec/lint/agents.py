"""Agents: runtimes, models, memory, and agents that are workflows."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.diagnostics import Diagnostic, error, warning
from kneo.spec.index import LocatedAgent, SpecIndex
from kneo.spec.messages import quote
from kneo.spec.models import Memory, MemoryRef, RuntimePreferences
from kneo.spec.models.providers import AVAILABLE_PROVIDERS, KNOWN_PROVIDERS, UNNAMED


def runtime_preferences(view: SpecIndex) -> Iterator[Diagnostic]:
    """Preferred and fallback runtimes are allowed ones, and say which provider or adapter they mean."""
    for at in view.agents:
        if at.agent.runtime_preferences is not None:
            yield from _preferences(at, at.agent.runtime_preferences)


def _preferences(at: LocatedAgent, given: RuntimePreferences) -> Iterator[Diagnostic]:
    path = (*at.path, "runtime_preferences")
    allowed = given.allowed_modes
    listed = ", ".join(allowed or ())
    if allowed and given.preferred_mode is not None and given.preferred_mode not in allowed:
        message = f"preferred_mode is {given.preferred_mode}; allowed_modes are {listed}."
        yield error("E_RUNTIME_PREFERRED_NOT_ALLOWED", message, (*path, "preferred_mode"))
    if allowed and given.fallback_mode is not None and given.fallback_mode not in allowed:
        message = f"fallback_mode is {given.fallback_mode}; allowed_modes are {listed}."
        yield error("E_RUNTIME_FALLBACK_NOT_ALLOWED", message, (*path, "fallback_mode"))
    if given.preferred_mode == "native" and not given.native_provider:
        message = "preferred_mode is native, and native_provider does not say whose."
        yield warning("W_RUNTIME_NATIVE_PROVIDER", message, (*path, "native_provider"))
    if given.preferred_mode == "adapter" and not given.adapter_ref:
        message = "preferred_mode is adapter, and adapter_ref does not say which."
        yield warning("W_RUNTIME_ADAPTER_REF", message, (*path, "adapter_ref"))


def models(view: SpecIndex) -> Iterator[Diagnostic]:
    """An agent that works in rounds has a model to work with."""
    for at in view.agents:
        strategy = at.agent.strategy
        if strategy is None or strategy.type == "simple" or at.agent.model is not None or at.agent.as_agent is not None:
            continue
        message = f"The agent {at.agent.name} works by {strategy.type} and names no model."
        yield warning("W_AGENT_MODEL", message, (*at.path, "model"))


def providers(view: SpecIndex) -> Iterator[Diagnostic]:
    """Providers exist and are available."""
    for at in view.agents:
        model = at.agent.model
        if model is None or model.provider in AVAILABLE_PROVIDERS:
            continue
        path = (*at.path, "model", "provider")
        hint = f"Available here: {', '.join(AVAILABLE_PROVIDERS)}."
        if model.provider == UNNAMED:
            message = f"The model {model.name} names no provider"
        elif model.provider in KNOWN_PROVIDERS:
            message = f"The provider {model.provider} is not available in this version"
        else:
            message = f"{quote(model.provider)} is no provider that is known here"
            hint = view.hints.near(model.provider, KNOWN_PROVIDERS) or hint
        message = f"{message}: a run that needs the agent {at.agent.name} is refused."
        yield warning("W_MODEL_PROVIDER", message, path, suggestion=hint)


MEMORY_POLICIES = ("full", "sliding_window", "summary", "retrieval")


def memory(view: SpecIndex) -> Iterator[Diagnostic]:
    """Memory has a policy, and the policy has what it needs."""
    for at in view.agents:
        if at.agent.memory is not None:
            yield from _memory(view, at, at.agent.memory)


def _memory(view: SpecIndex, at: LocatedAgent, given: Memory) -> Iterator[Diagnostic]:
    path = (*at.path, "memory")
    if given.policy not in MEMORY_POLICIES:
        what = "has no policy" if given.policy is None else f"has the policy {given.policy}, which is unknown"
        hint = f"Write one of {', '.join(MEMORY_POLICIES)}."
        yield error("E_MEMORY_POLICY_REQUIRED", f"The memory {what}.", (*path, "policy"), suggestion=hint)
    yield from _memory_part(view, at, "summarizer", given.summarizer, needed=given.policy == "summary")
    yield from _memory_part(view, at, "retriever", given.retriever, needed=given.policy == "retrieval")


def _memory_part(
    view: SpecIndex, at: LocatedAgent, key: str, part: MemoryRef | None, *, needed: bool
) -> Iterator[Diagnostic]:
    path = (*at.path, "memory", key)
    if part is None:
        if needed:
            hint = "Name an agent or a function of components as its ref."
            yield error("E_MEMORY_REF", f"This memory policy needs a {key}.", path, suggestion=hint)
    elif view.agent_named(part.ref) is None and part.ref not in view.function_names:
        message = f"The {key} {part.ref} is neither in components.agents nor in components.functions."
        near = view.hints.near(part.ref, {*view.agent_names, *view.function_names})
        yield error("E_MEMORY_REF", message, (*path, "ref"), suggestion=near)


_OWN_FIELDS = (
    "model",
    "strategy",
    "runtime_preferences",
    "tools",
    "skills",
    "memory",
    "guardrails",
    "history",
    "middleware",
    "defaults",
)


def workflow_agents(view: SpecIndex) -> Iterator[Diagnostic]:
    """An agent that is a workflow has nothing beside it, and the workflow exists."""
    for at in view.agents:
        name = at.agent.as_agent
        if name is None:
            continue
        own = [field for field in _OWN_FIELDS if getattr(at.agent, field)]
        if own:
            message = f"The agent {at.agent.name} is the workflow {name}; its own {', '.join(own)} would mean nothing."
            yield error("E_AS_AGENT_FIELDS", message, at.path, suggestion="Move them to the agents of the workflow.")
        workflows = view.spec.components.workflows
        if name not in workflows:
            message = f"The workflow {name} is not in components.workflows."
            hint = view.hints.near(name, workflows) or "Declare it in components.workflows."
            yield error("E_AS_AGENT_UNKNOWN_WORKFLOW", message, (*at.path, "as_agent"), suggestion=hint)
