"""Rules for agents: runtimes, models, budgets, memory, workflows behind agents, and guardrails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kneo.errors import Invalid
from kneo.spec.base import quote
from kneo.spec.documents import Diagnostic, Path, Severity, error, warning
from kneo.spec.index import LocatedAgent, SpecIndex
from kneo.spec.lint.gates import pattern_findings, schema_findings
from kneo.spec.models.agent import UNNAMED, Agent, Guardrail, Memory, MemoryRef, Model, ModelChoice, RuntimePreferences
from kneo.spec.models.providers import DUMMY, KNOWN_PROVIDERS
from kneo.spec.tool_kinds import ASK_QUESTION


def runtime_preferences(index: SpecIndex) -> Iterator[Diagnostic]:
    """Preferred and fallback runtimes are allowed, and name their provider or adapter."""
    for at in index.agents:
        if at.agent.runtime_preferences is not None:
            yield from _preferences(at, at.agent.runtime_preferences)


def _preferences(at: LocatedAgent, stated: RuntimePreferences) -> Iterator[Diagnostic]:
    path = (*at.path, "runtime_preferences")
    allowed = stated.allowed_modes
    listed = ", ".join(allowed or ())
    if allowed and stated.preferred_mode is not None and stated.preferred_mode not in allowed:
        message = f"preferred_mode is {stated.preferred_mode}; allowed_modes are {listed}."
        yield error("E_RUNTIME_PREFERRED_NOT_ALLOWED", message, (*path, "preferred_mode"))
    if allowed and stated.fallback_mode is not None and stated.fallback_mode not in allowed:
        message = f"fallback_mode is {stated.fallback_mode}; allowed_modes are {listed}."
        yield error("E_RUNTIME_FALLBACK_NOT_ALLOWED", message, (*path, "fallback_mode"))
    if stated.preferred_mode == "native" and not stated.native_provider:
        message = "preferred_mode is native, and native_provider is missing."
        yield warning("W_RUNTIME_NATIVE_PROVIDER", message, (*path, "native_provider"))
    if stated.preferred_mode == "adapter" and not stated.adapter_ref:
        message = "preferred_mode is adapter, and adapter_ref is missing."
        yield warning("W_RUNTIME_ADAPTER_REF", message, (*path, "adapter_ref"))


APPEND_MODES = ("auto", "never", "user_only", "assistant_only")


def unsupported_fields(index: SpecIndex) -> Iterator[Diagnostic]:
    """The maps of an agent that have no schema hold only what has an effect."""
    for at in index.agents:
        if at.agent.history:
            message = "history has no effect: an agent sees its step's input and what its memory says."
            hint = "Write memory: {policy: sliding_window, max_messages: 20}, or leave it out."
            yield error("E_FIELD_UNSUPPORTED", message, (*at.path, "history"), suggestion=hint)
        for name, value in at.agent.defaults.items():
            path = (*at.path, "defaults", name)
            if name != "append_mode":
                message = f"{name[:80]} is no default of an agent."
                yield error(
                    "E_FIELD_UNSUPPORTED", message, path, suggestion="Leave it out; append_mode is the only one."
                )
            elif value not in APPEND_MODES:
                message = f"{str(value)[:80]!r} is no append_mode."
                yield error("E_FIELD_UNSUPPORTED", message, path, suggestion=f"Write one of {', '.join(APPEND_MODES)}.")


def middleware(index: SpecIndex) -> Iterator[Diagnostic]:
    """The middleware that agents name is registered, as far as this process knows."""
    known = index.context.middleware
    if known is None:
        return
    for at in index.agents:
        for number, name in enumerate(at.agent.middleware):
            if name not in known:
                message = f"The middleware {name} is not registered here; where it is not, the agent's steps fail."
                hint = index.hints.near(name, known) or "Register it: ToolRegistry.use or use_around_turns."
                yield warning("W_MIDDLEWARE_UNKNOWN", message, (*at.path, "middleware", number), suggestion=hint)


MEMORY_POLICIES = ("full", "sliding_window", "summary", "retrieval")


def memory(index: SpecIndex) -> Iterator[Diagnostic]:
    """Memory has a policy and the parts that the policy needs."""
    for at in index.agents:
        if at.agent.memory is not None:
            yield from _memory(index, at, at.agent.memory)


def _memory(index: SpecIndex, at: LocatedAgent, stated: Memory) -> Iterator[Diagnostic]:
    path = (*at.path, "memory")
    if stated.policy not in MEMORY_POLICIES:
        what = "has no policy" if stated.policy is None else f"has the policy {stated.policy}, which is unknown"
        hint = f"Write one of {', '.join(MEMORY_POLICIES)}."
        yield error("E_MEMORY_POLICY_REQUIRED", f"The memory {what}.", (*path, "policy"), suggestion=hint)
    if stated.preserve_system_messages is False:
        message = (
            "A request without the system prompt is not possible: it has the rules that the agent is released with."
        )
        hint = "Leave it out. max_messages limits the earlier messages; an agent without system_prompt has no instructions."
        yield error("E_FIELD_UNSUPPORTED", message, (*path, "preserve_system_messages"), suggestion=hint)
    yield from _memory_part(index, at, "summarizer", stated.summarizer, needed=stated.policy == "summary")
    yield from _memory_part(index, at, "retriever", stated.retriever, needed=stated.policy == "retrieval")


def _memory_part(
    index: SpecIndex, at: LocatedAgent, key: str, part: MemoryRef | None, *, needed: bool
) -> Iterator[Diagnostic]:
    path = (*at.path, "memory", key)
    if part is None:
        if needed:
            hint = "Name an agent or a function of components as its ref."
            yield error("E_MEMORY_REF", f"This memory policy needs a {key}.", path, suggestion=hint)
        return
    tools = index.tool_names - {ASK_QUESTION} if key == "retriever" else frozenset()
    known = {*index.agent_names, *index.function_names, *tools}
    tool = index.spec.tools.get(part.ref) if part.ref in tools else None
    if part.ref not in known and (key != "retriever" or index.is_missing_tool(part.ref)):
        places = (
            "components.agents, components.functions and tools"
            if tools
            else "components.agents and components.functions"
        )
        message = f"The {key} {part.ref} is in none of {places}."
        yield error("E_MEMORY_REF", message, (*path, "ref"), suggestion=index.hints.near(part.ref, known))
    elif tool is not None and (tool.agent is not None or tool.has_effects):
        what = "is an agent" if tool.agent is not None else "has effects"
        message = (
            f"The retriever {part.ref} is a tool that {what}; it is called at the beginning of every conversation."
        )
        yield error("E_MEMORY_REF", message, (*path, "ref"), suggestion="Name a tool that only reads.")


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
    "output_schema",
    "ask_question",
)


def workflow_agents(index: SpecIndex) -> Iterator[Diagnostic]:
    """An agent that is a workflow has no fields of its own, and the workflow exists."""
    for at in index.agents:
        name = at.agent.as_agent
        if name is None:
            continue
        own = [field for field in _OWN_FIELDS if getattr(at.agent, field)]
        if own:
            message = (
                f"The agent {at.agent.name} is the workflow {name}; its own {', '.join(own)} would have no effect."
            )
            yield error("E_AS_AGENT_FIELDS", message, at.path, suggestion="Move them to the agents of the workflow.")
        workflows = index.spec.components.workflows
        if name not in workflows:
            message = f"The workflow {name} is not in components.workflows."
            hint = index.hints.near(name, workflows) or "Declare it in components.workflows."
            yield error("E_AS_AGENT_UNKNOWN_WORKFLOW", message, (*at.path, "as_agent"), suggestion=hint)


TYPES = ("keyword", "regex", "function", "agent")

_ALWAYS = ("warn", "block", "retry", "escalate", "human_review", "redact")
ACTIONS = {
    "input": _ALWAYS,
    "output": (*_ALWAYS, "revise"),
    "tool": (*_ALWAYS, "revise"),
    "workflow": (*_ALWAYS, "revise"),
}
"""The actions of a guardrail at each stage."""


def guardrails(index: SpecIndex) -> Iterator[Diagnostic]:
    """Every guardrail has the fields of its type and an action of its stage."""
    for at in index.agents:
        stages = at.agent.guardrails.stages() if at.agent.guardrails else {}
        for stage, items in stages.items():
            for number, item in enumerate(items):
                path = (*at.path, "guardrails", stage, number)
                yield from _fields(item, path)
                yield from _manner(item, stage, path)
                yield from _content(index, item, path)


def _fields(item: Guardrail, path: Path) -> Iterator[Diagnostic]:
    if not item.id:
        yield error("E_GUARDRAIL_FIELDS", "The guardrail has no id.", (*path, "id"), suggestion="Give it a name.")
    if not item.type:
        hint = f"Write one of {', '.join(TYPES)}."
        yield error("E_GUARDRAIL_FIELDS", "The guardrail has no type.", (*path, "type"), suggestion=hint)
    elif item.type not in TYPES:
        hint = f"Write one of {', '.join(TYPES)}."
        yield error("E_GUARDRAIL_TYPE", f"{item.type} is no type of guardrail.", (*path, "type"), suggestion=hint)


def _manner(item: Guardrail, stage: str, path: Path) -> Iterator[Diagnostic]:
    if item.mode != "middleware":
        message = f"The mode {item.mode} does not exist; a guardrail in it would never run."
        yield error("E_GUARDRAIL_MODE_UNSUPPORTED", message, (*path, "mode"), suggestion="Leave mode out.")
    if item.action not in ACTIONS[stage]:
        message = f"A guardrail at {stage} cannot {item.action}."
        hint = f"Write one of {', '.join(ACTIONS[stage])}."
        yield error("E_GUARDRAIL_ACTION_UNSUPPORTED", message, (*path, "action"), suggestion=hint)


def _content(index: SpecIndex, item: Guardrail, path: Path) -> Iterator[Diagnostic]:
    human = item.config.get("human")
    if human is not None and human not in index.spec.components.humans:
        message = f"The guardrail {item.id} asks {human}, who is not in components.humans."
        hint = index.hints.near(str(human), index.spec.components.humans) or "Declare them in components.humans."
        yield error("E_GUARDRAIL_REF", message, (*path, "config", "human"), suggestion=hint)
    match item.type:
        case "regex":
            yield from _patterns(item, path)
        case "keyword":
            yield from _texts(item, "keywords", path)
        case "function":
            yield from _reference(index, item, path, index.function_names, "components.functions")
        case "agent":
            yield from _reference(index, item, path, frozenset(index.agent_names), "components.agents")
        case _:
            pass


def _reference(
    index: SpecIndex, item: Guardrail, path: Path, known: frozenset[str], place: str
) -> Iterator[Diagnostic]:
    if item.ref is None:
        message = f"The guardrail {item.id} names no {item.type}."
        yield error("E_GUARDRAIL_REF", message, (*path, "ref"), suggestion=f"Name one in {place}.")
    elif item.ref not in known:
        message = f"The guardrail {item.id} uses {item.ref}, which is not in {place}."
        hint = index.hints.near(item.ref, known) or f"Declare it in {place}."
        yield error("E_GUARDRAIL_REF", message, (*path, "ref"), suggestion=hint)


def _texts(item: Guardrail, key: str, path: Path) -> Iterator[Diagnostic]:
    """Report an invalid list of texts; an empty one guards nothing, which is allowed and rarely intended."""
    stated = item.config.get(key)
    path = (*path, "config", key)
    if stated is None or stated == []:
        message = f"The guardrail {item.id} has no {key}; it never matches."
        yield warning("W_GUARDRAIL_EMPTY", message, path, suggestion=f"Write config.{key}.")
    elif not isinstance(stated, list) or not all(isinstance(text, str) and text for text in stated):
        yield error("E_GUARDRAIL_CONFIG", f"config.{key} must be a list of texts, none of them empty.", path)


def _patterns(item: Guardrail, path: Path) -> Iterator[Diagnostic]:
    stated = item.config.get("patterns")
    yield from _texts(item, "patterns", path)
    for number, pattern in enumerate(stated if isinstance(stated, list) else ()):
        if isinstance(pattern, str):
            yield from pattern_findings(pattern, (*path, "config", "patterns", number), "E_GUARDRAIL_REGEX")


def models(index: SpecIndex) -> Iterator[Diagnostic]:
    """An agent with a strategy has a model."""
    for at in index.agents:
        strategy = at.agent.strategy
        if strategy is None or strategy.type == "simple" or at.agent.model is not None or at.agent.as_agent is not None:
            continue
        message = f"The agent {at.agent.name} has the strategy {strategy.type} and no model."
        yield warning("W_AGENT_MODEL", message, (*at.path, "model"))


def providers(index: SpecIndex) -> Iterator[Diagnostic]:
    """Models can be asked: by their provider, by the rules of the environment, and by the machine of the check."""
    for at in index.agents:
        for below, choice, agent in _choices(at):
            found = _provider(index, at, choice) or _not_allowed(index, at, choice)
            path = (*at.path, *below)
            if found is not None:
                code, key, message, hint = found
                yield warning(code, message, (*path, key), suggestion=hint)
            elif index.context.models is not None:
                refusal = index.context.models(at.agent.name, agent, index.context.rules)
                if refusal is not None:
                    yield _refused(refusal, path)


def _choices(at: LocatedAgent) -> Iterator[tuple[Path, ModelChoice, Agent]]:
    """Yield each model of an agent with its path, and the agent as if it had no other model."""
    model = at.agent.model
    if model is None:
        return
    yield ("model",), model, at.agent.model_copy(update={"model": model.model_copy(update={"fallbacks": ()})})
    for number, choice in enumerate(model.fallbacks):
        alone = Model.model_construct(**{name: getattr(choice, name) for name in ModelChoice.model_fields})
        agent = at.agent.model_copy(update={"model": alone, "runtime_preferences": None})
        yield ("model", "fallbacks", number), choice, agent


def _provider(index: SpecIndex, at: LocatedAgent, choice: ModelChoice) -> tuple[str, str, str, str] | None:
    known = ", ".join(KNOWN_PROVIDERS)
    refused = f"a run that needs the agent {at.agent.name} is refused"
    if choice.provider == UNNAMED:
        hint = f"Write model: {{provider: PROVIDER, name: {choice.name}}}; known: {known}."
        return "W_MODEL_PROVIDER", "provider", f"The model {choice.name} names no provider: {refused}.", hint
    if choice.provider not in KNOWN_PROVIDERS:
        hint = index.hints.near(choice.provider, KNOWN_PROVIDERS) or f"Known: {known}."
        return "W_MODEL_PROVIDER", "provider", f"{quote(choice.provider)} is an unknown provider: {refused}.", hint
    return None


def _not_allowed(index: SpecIndex, at: LocatedAgent, choice: ModelChoice) -> tuple[str, str, str, str] | None:
    rules = index.context.rules
    if rules is None or rules.models.permits(choice.provider, choice.name):
        return None
    shown = f"{choice.provider}/{choice.name}"
    message = f"This environment does not allow {shown}: a run that needs the agent {at.agent.name} is refused."
    hint = "Name an allowed model, or add this one to models.allow of the environment file."
    return "W_MODEL_NOT_ALLOWED", "name", message, hint


_LACKING: Mapping[object, str] = {"library": "I_MODEL_EXTRA", "key": "I_MODEL_KEY", "address": "I_MODEL_ADDRESS"}
"""The codes of what the machine of the check lacks, which is no fault of the spec."""


def _refused(refusal: Invalid, path: Path) -> Diagnostic:
    """Turn the refusal of a run into a finding."""
    lacking = _LACKING.get(refusal.details.get("lacking"))
    if lacking is not None:
        return Diagnostic(lacking, Severity.INFO, refusal.message, (*path, "provider"), refusal.hint)
    if refusal.code == "model_host_denied":
        return warning("W_MODEL_HOST", refusal.message, (*path, "extra", "base_url"), suggestion=refusal.hint)
    return warning("W_MODEL_PROVIDER", refusal.message, path, suggestion=refusal.hint)


def budgets(index: SpecIndex) -> Iterator[Diagnostic]:
    """Agents that ask a model have a budget, where the environment denies unrestricted tools."""
    rules = index.context.rules
    if rules is None or not (rules.policy.enabled and rules.policy.deny_unrestricted_tools) or rules.models.budgets:
        return
    for at in index.agents:
        model = at.agent.model
        if model is None or model.token_budget is not None or model.provider == DUMMY:
            continue
        message = f"Nothing limits what a run of {at.agent.name} costs: it has no token_budget, and this environment no budget."
        hint = "Write model.token_budget, or models.budgets in the environment file."
        yield warning("W_BUDGET_NONE", message, (*at.path, "model", "token_budget"), suggestion=hint)


def structured_output(index: SpecIndex) -> Iterator[Diagnostic]:
    """Schemas of agents' answers can be used, and describe an object."""
    for at in index.agents:
        schema, path = at.agent.output_schema, (*at.path, "output_schema")
        if schema is None:
            continue
        if schema.get("type") != "object":
            message = f"The output_schema of {at.agent.name} does not describe an object, which models answer with."
            hint = "Write type: object, with the answer as one of its properties."
            yield error("E_OUTPUT_SCHEMA", message, path, suggestion=hint)
        for found in schema_findings(schema, path):
            yield error("E_OUTPUT_SCHEMA", found.message, found.path, suggestion=found.suggestion)
