"""Questions a workflow asks: at edges, in containers and at gates."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.gates import all_gates
from kneo.spec.diagnostics import Diagnostic, error
from kneo.spec.documents import Path
from kneo.spec.index import LocatedStep, SpecIndex
from kneo.spec.models import Condition, ConditionStep, GraphWorkflow, LoopStep, RouterStep

_NEED_VALUE = frozenset({"output_contains", "output_equals", "metadata_equals", "variable_equals", "status_is"})
_NEED_KEY = frozenset({"metadata_equals", "variable_equals"})


def conditions(view: SpecIndex) -> Iterator[Diagnostic]:
    """Conditions have what their type compares or joins."""
    for workflow in view.workflows:
        if isinstance(workflow.workflow, GraphWorkflow):
            for index, edge in enumerate(workflow.workflow.edges):
                yield from _complete(edge.condition, (*workflow.path, "edges", index, "condition"))
    for at in view.steps:
        yield from _of_step(at)
    for gate in all_gates(view):
        yield from _complete(gate.gate.when, (*gate.path, "when"))


def _of_step(at: LocatedStep) -> Iterator[Diagnostic]:
    match at.step:
        case ConditionStep():
            yield from _complete(at.step.when, (*at.path, "when"))
        case LoopStep():
            yield from _complete(at.step.until, (*at.path, "until"))
        case RouterStep() if at.step.selector is not None:
            for index, way in enumerate(at.step.selector.conditions):
                yield from _complete(way.when, (*at.path, "selector", "conditions", index, "when"))
        case _:
            pass


def _complete(condition: Condition | None, path: Path) -> Iterator[Diagnostic]:
    if condition is None:
        return
    kind = condition.type
    if kind in _NEED_VALUE and condition.value is None:
        yield error("E_CONDITION_VALUE", f"{kind} needs a value to compare with.", (*path, "value"))
    if kind in _NEED_KEY and not condition.key:
        yield error("E_CONDITION_KEY", f"{kind} needs the key it looks at.", (*path, "key"))
    if kind in {"all_of", "any_of"} and not condition.conditions:
        yield error("E_CONDITION_CHILDREN", f"{kind} joins no conditions.", (*path, "conditions"))
    if kind == "not" and condition.condition is None:
        yield error("E_CONDITION_CHILD", "not has no condition to turn around.", (*path, "condition"))
    for index, child in enumerate(condition.conditions):
        yield from _complete(child, (*path, "conditions", index))
    yield from _complete(condition.condition, (*path, "condition"))
