"""Lint rules: a table of functions over the index of a spec.

A rule yields diagnostics. It has no side effects and imports no module that the spec names: facts from outside the spec
are in the :class:`~kneo.spec.modules.RuleContext`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from kneo.spec.coverage.privileged_calls import coverage
from kneo.spec.documents import Diagnostic
from kneo.spec.index import SpecIndex
from kneo.spec.lint import (
    agents,
    calls,
    gates,
    implementations,
    no_effect,
    sandbox,
    texts,
    tools,
    workflows,
)
from kneo.spec.models.spec import Spec
from kneo.spec.modules import NOTHING_KNOWN, RuleContext

Rule: TypeAlias = Callable[[SpecIndex], Iterator[Diagnostic]]

RULES: tuple[Rule, ...] = (
    texts.names,
    workflows.step_references,
    workflows.containers,
    workflows.timeouts,
    tools.tool_selections,
    tools.tool_names,
    tools.refused_tools,
    tools.skill_selections,
    agents.runtime_preferences,
    agents.unsupported_fields,
    no_effect.policies,
    workflows.families,
    gates.conditions,
    agents.models,
    tools.governance,
    tools.capabilities,
    gates.humans,
    gates.gates,
    agents.memory,
    agents.middleware,
    agents.guardrails,
    tools.tool_backings,
    tools.effects,
    sandbox.sandboxes,
    sandbox.scripts,
    tools.call_titles,
    tools.requests,
    tools.tool_people,
    agents.workflow_agents,
    calls.calls,
    calls.caller,
    tools.mcp,
    tools.refused_servers,
    implementations.implementations,
    gates.json_schemas,
    texts.inline_secrets,
    workflows.build_cycles,
    coverage,
    agents.providers,
    agents.budgets,
    agents.structured_output,
    no_effect.no_effect,
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
