"""What must hold between the parts of a spec, as a table of small functions.

A rule takes the indexed spec and yields what it finds. It changes nothing, asks nobody and imports nothing that the spec
names: what it may know of the world is in the :class:`~kneo.spec.context.RuleContext`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from kneo.spec.context import NOTHING_KNOWN, RuleContext
from kneo.spec.diagnostics import Diagnostic
from kneo.spec.models import Spec
from kneo.spec.rules.agents import memory, models, providers, runtime_preferences, workflow_agents
from kneo.spec.rules.conditions import conditions
from kneo.spec.rules.containers import containers, timeouts
from kneo.spec.rules.coverage import coverage
from kneo.spec.rules.cycles import build_cycles
from kneo.spec.rules.gates import gates
from kneo.spec.rules.governance import capabilities, governance
from kneo.spec.rules.graphs import families
from kneo.spec.rules.guardrails import guardrails
from kneo.spec.rules.humans import humans
from kneo.spec.rules.imports import implementations
from kneo.spec.rules.mcp import mcp
from kneo.spec.rules.names import names
from kneo.spec.rules.no_effect import no_effect
from kneo.spec.rules.references import step_references
from kneo.spec.rules.schemas import json_schemas
from kneo.spec.rules.secrets import inline_secrets
from kneo.spec.rules.tools import skill_selections, tool_backings, tool_selections
from kneo.spec.rules.view import SpecView

Rule: TypeAlias = Callable[[SpecView], Iterator[Diagnostic]]

RULES: tuple[Rule, ...] = (
    names,
    step_references,
    containers,
    timeouts,
    tool_selections,
    skill_selections,
    runtime_preferences,
    families,
    conditions,
    models,
    governance,
    capabilities,
    humans,
    gates,
    memory,
    guardrails,
    tool_backings,
    workflow_agents,
    mcp,
    implementations,
    json_schemas,
    inline_secrets,
    build_cycles,
    coverage,
    providers,
    no_effect,
)
"""Every rule. The order is the published one of what they find; rules of our own stand beside their kin."""


def check(spec: Spec, context: RuleContext = NOTHING_KNOWN) -> tuple[Diagnostic, ...]:
    """Judge a spec that has the right shape.

    Args:
        spec: The spec, in normal form.
        context: What may be known of the world around it.

    Returns:
        What was found, in the order of the rules; positions in files are for the caller to add.
    """
    view = SpecView.of(spec, context)
    return tuple(found for rule in RULES for found in rule(view))
