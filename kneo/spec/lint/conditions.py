"""Rules for conditions: the fields that their type needs, and the names and types of expressions."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.exposure import callable_tools, privileged_capabilities
from kneo.spec.coverage.gates import LocatedGate, all_gates
from kneo.spec.documents import Diagnostic, Path, error, warning
from kneo.spec.expression import STEP_FACTS, ExpressionInvalid, Schema, call_facts, find_type_errors, parse
from kneo.spec.index import SpecIndex
from kneo.spec.models.human import Condition, has_expression
from kneo.spec.models.workflow import ConditionStep, GraphWorkflow, LoopStep, RouterStep, Step


def conditions(index: SpecIndex) -> Iterator[Diagnostic]:
    """Conditions have the fields that their type compares or joins, and expressions compare what there is."""
    for workflow in index.workflows:
        if isinstance(workflow.workflow, GraphWorkflow):
            for at, edge in enumerate(workflow.workflow.edges):
                yield from condition_findings(edge.condition, (*workflow.path, "edges", at, "condition"), STEP_FACTS)
    for step in index.steps:
        for below, condition in _conditions(step.step):
            yield from condition_findings(condition, (*step.path, *below), STEP_FACTS)
    for gate in all_gates(index):
        facts = STEP_FACTS if gate.tool is None else call_facts(index.spec.tools[gate.tool].parameters)
        yield from condition_findings(gate.gate.when, (*gate.path, "when"), facts, gate.tool or "")
        yield from _asks_always(index, gate)


def _asks_always(index: SpecIndex, gate: LocatedGate) -> Iterator[Diagnostic]:
    """Report an expression at a privileged tool of which the chosen environment accepts no unattended call."""
    rules, name = index.context.rules, gate.tool
    if rules is None or name is None or not has_expression(gate.gate.when):
        return
    tool = index.spec.tools[name]
    callers = [at.agent for at in index.agents if name in callable_tools(at.agent)]
    is_privileged = any(privileged_capabilities(agent, tool) for agent in callers)
    if is_privileged and not any(rule.matches(tool.names(name)) for rule in rules.tools.unattended):
        message = f"{index.context.environment} accepts no unattended call of {name}, so this gate always asks."
        hint = f"Add a rule for {name} to tools.unattended of the environment file."
        yield warning("W_CONDITION_ASKS_ALWAYS", message, (*gate.path, "when"), suggestion=hint)


def _conditions(step: Step) -> Iterator[tuple[Path, Condition | None]]:
    if isinstance(step, ConditionStep):
        yield ("when",), step.when
    elif isinstance(step, LoopStep):
        yield ("until",), step.until
    elif isinstance(step, RouterStep) and step.selector is not None:
        for at, route in enumerate(step.selector.conditions):
            yield ("selector", "conditions", at, "when"), route.when


_NEED_VALUE = frozenset({"output_contains", "output_equals", "metadata_equals", "variable_equals", "status_is"})
_NEED_KEY = frozenset({"metadata_equals", "variable_equals"})


def condition_findings(condition: Condition | None, path: Path, facts: Schema, tool: str = "") -> Iterator[Diagnostic]:
    """Report what a condition lacks, and the flaws of its expressions.

    Args:
        condition: The condition.
        path: Its path in the file.
        facts: The JSON Schema of the facts that expressions compare.
        tool: The tool at whose calls it is evaluated.
    """
    if condition is None:
        return
    kind = condition.type
    if kind == "expression":
        yield from expression_findings(condition.value, path, facts, tool)
    if kind in _NEED_VALUE and condition.value is None:
        yield error("E_CONDITION_VALUE", f"{kind} needs a value to compare with.", (*path, "value"))
    if kind in _NEED_KEY and not condition.key:
        yield error("E_CONDITION_KEY", f"{kind} needs the key to compare.", (*path, "key"))
    if kind in {"all_of", "any_of"} and not condition.conditions:
        yield error("E_CONDITION_CHILDREN", f"{kind} joins no conditions.", (*path, "conditions"))
    if kind == "not" and condition.condition is None:
        yield error("E_CONDITION_CHILD", "not has no condition to negate.", (*path, "condition"))
    for at, child in enumerate(condition.conditions):
        yield from condition_findings(child, (*path, "conditions", at), facts, tool)
    yield from condition_findings(condition.condition, (*path, "condition"), facts, tool)


def expression_findings(text: object, path: Path, facts: Schema, tool: str = "") -> Iterator[Diagnostic]:
    """Report the flaws of the text of an expression; see ``condition_findings``."""
    try:
        expression = parse(text if isinstance(text, str) else "")
    except ExpressionInvalid as flaw:
        yield error("E_CONDITION_SYNTAX", flaw.message, path)
        return
    for code, message in find_type_errors(expression, facts, tool=tool):
        yield error(code, message, path)
