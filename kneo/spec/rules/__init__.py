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
from kneo.spec.rules import references, tools
from kneo.spec.rules.view import SpecView

Rule: TypeAlias = Callable[[SpecView], Iterator[Diagnostic]]

RULES: tuple[Rule, ...] = (
    references.step_references,
    tools.tool_selections,
    tools.skill_selections,
    tools.tool_backings,
)
"""Every rule, in the published order of what they find."""


def check(spec: Spec, context: RuleContext = NOTHING_KNOWN) -> tuple[Diagnostic, ...]:
    """Judge a spec that has the right shape.

    Args:
        spec: The spec.
        context: What may be known of the world around it.

    Returns:
        What was found, in the order of the rules; positions in files are for the caller to add.
    """
    view = SpecView.of(spec, context)
    return tuple(found for rule in RULES for found in rule(view))
