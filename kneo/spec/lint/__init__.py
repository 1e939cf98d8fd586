"""Lint rules: a table of functions over the index of a spec.

A rule yields diagnostics. It has no side effects and imports no module that the spec names: facts from outside the spec
are in the :class:`~kneo.spec.modules.RuleContext`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from kneo.spec.coverage.privileged_calls import coverage
from kneo.spec.diagnostics import Diagnostic
from kneo.spec.index import SpecIndex
from kneo.spec.lint.agents import (
    guardrails,
    memory,
    middleware,
    runtime_preferences,
    unsupported_fields,
    workflow_agents,
)
from kneo.spec.lint.calls import effects, requests, tool_names, tool_people
from kneo.spec.lint.environment import refused_servers, refused_tools
from kneo.spec.lint.gates import gates, humans
from kneo.spec.lint.implementations import implementations
from kneo.spec.lint.models import budgets, models, providers, structured_output
from kneo.spec.lint.names import names
from kneo.spec.lint.no_effect import no_effect
from kneo.spec.lint.policies import policies
from kneo.spec.lint.schemas import json_schemas
from kneo.spec.lint.secrets import inline_secrets
from kneo.spec.lint.tools import capabilities, governance, mcp, skill_selections, tool_backings, tool_selections
from kneo.spec.lint.workflows import build_cycles, conditions, containers, families, step_references, timeouts
from kneo.spec.models.spec import Spec
from kneo.spec.modules import NOTHING_KNOWN, RuleContext

Rule: TypeAlias = Callable[[SpecIndex], Iterator[Diagnostic]]

RULES: tuple[Rule, ...] = (
    names,
    step_references,
    containers,
    timeouts,
    tool_selections,
    tool_names,
    refused_tools,
    skill_selections,
    runtime_preferences,
    unsupported_fields,
    policies,
    families,
    conditions,
    models,
    governance,
    capabilities,
    humans,
    gates,
    memory,
    middleware,
    guardrails,
    tool_backings,
    effects,
    requests,
    tool_people,
    workflow_agents,
    mcp,
    refused_servers,
    implementations,
    json_schemas,
    inline_secrets,
    build_cycles,
    coverage,
    providers,
    budgets,
    structured_output,
    no_effect,
)
"""Every rule, in the published order of their findings; added rules follow related ones."""


def check(spec: Spec, context: RuleContext = NOTHING_KNOWN) -> tuple[Diagnostic, ...]:
    """Apply all rules to a spec that matches the schema.

    Args:
        spec: The spec, in normal form.
        context: Facts from outside the spec.

    Returns:
        The findings in the order of the rules, without positions in files.
    """
    index = SpecIndex.of(spec, context)
    return tuple(found for rule in RULES for found in rule(index))
