"""Rules for models: providers, libraries, keys, budgets, and what an environment allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kneo.errors import Invalid
from kneo.spec.diagnostics import Diagnostic, Severity, error, warning
from kneo.spec.documents import Path
from kneo.spec.index import LocatedAgent, SpecIndex
from kneo.spec.lint.schemas import schema_findings
from kneo.spec.messages import quote
from kneo.spec.models.agent import KNOWN_PROVIDERS, UNNAMED, Agent, Model, ModelChoice

DUMMY = "dummy"


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
