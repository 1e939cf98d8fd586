"""Rules for gates, their conditions, humans, and the values that they ask for: positions, decisions, timeouts, types and patterns."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.exposure import callable_tools, privileged_capabilities
from kneo.spec.coverage.gates import (
    UNSIGNED_HINT,
    LocatedGate,
    all_gates,
    effective_human,
    named_human,
    step_human,
    unsigned_timeout,
)
from kneo.spec.documents import Diagnostic, Path, error, warning
from kneo.spec.expression import STEP_FACTS, ExpressionInvalid, Schema, call_facts, find_type_errors, parse
from kneo.spec.gates import ERROR_OPTIONS
from kneo.spec.index import SpecIndex
from kneo.spec.json_schema import find_flaws
from kneo.spec.models.human import CALLER, NOT_HONOURED, Condition, Gate, Human, has_expression
from kneo.spec.models.workflow import ConditionStep, GraphWorkflow, LeafStep, LoopStep, RouterStep, Step
from kneo.spec.patterns import find_flaw


def gates(index: SpecIndex) -> Iterator[Diagnostic]:
    """Gates ask a declared human, and offer decisions that have an effect at their position."""
    humans = index.spec.components.humans
    for at in all_gates(index):
        if isinstance(at.gate.human, str) and at.gate.human not in humans and at.gate.human != CALLER:
            message = f"The gate asks {at.gate.human}, which is not in components.humans."
            code, path = "E_REVIEW_HUMAN_REF", (*at.path, "human")
            yield index.undeclared(code, message, path, at.gate.human, humans, "components.humans")
        yield from _decisions(index, at)
        if not at.row.can_reject and at.gate.on_reject is not None:
            message = f"A person chooses at review.{at.position}, and cannot reject there."
            hint = "Leave on_reject out; ask with review.before whether to go on at all."
            yield error("E_REVIEW_REJECT", message, (*at.path, "on_reject"), suggestion=hint)
        yield from _choices(at)


def _decisions(index: SpecIndex, at: LocatedGate) -> Iterator[Diagnostic]:
    legal = at.row.decisions
    hint = f"Here the answers are {', '.join(legal)}."
    if at.gate.decisions is not None:
        wrong = [decision for decision in at.gate.decisions if decision not in legal]
        if wrong:
            message = f"review.{at.position} cannot be answered with {', '.join(wrong)}."
            yield error("E_REVIEW_DECISION", message, (*at.path, "decisions"), suggestion=hint)
        return
    human = named_human(at.gate, index.spec.components.humans)
    inherited = human.decisions if human else None
    if inherited is not None and not frozenset(inherited) & frozenset(legal):
        message = f"The human of this gate only answers with {', '.join(inherited)}."
        yield error("E_REVIEW_DECISION", message, (*at.path, "human"), suggestion=hint)


def _choices(at: LocatedGate) -> Iterator[Diagnostic]:
    step = at.step.step if at.step else None
    legal: tuple[str, ...] | None = ERROR_OPTIONS if at.position == "error" else None
    if at.position == "route" and isinstance(step, RouterStep):
        legal = tuple(step.choices)
    wrong = [option for option in at.gate.options or () if legal is not None and option not in legal]
    if legal is not None and wrong:
        message = f"review.{at.position} cannot offer {', '.join(wrong)}."
        hint = f"Here the options are {', '.join(legal)}."
        yield error("E_REVIEW_OPTIONS", message, (*at.path, "options"), suggestion=hint)


def humans(index: SpecIndex) -> Iterator[Diagnostic]:
    """Questions can be answered, and supported by this version."""
    declared = index.spec.components.humans
    for name, human in declared.items():
        path: Path = ("components", "humans", name)
        yield from _human(human, path)
        yield from _unsigned(human, "stop", path)
    for step in index.steps:
        if isinstance(step.step, LeafStep) and step.step.kind == "human" and step.step.timeout_seconds is not None:
            named = declared.get(step.step.ref)
            asked = step_human(step.step, declared)
            if named is not None and asked is not None and unsigned_timeout(named, "stop") is None:
                yield from _unsigned(asked, "stop", step.path, "timeout_seconds")
    for at in all_gates(index):
        named = None if isinstance(at.gate.human, Human) else named_human(at.gate, declared)
        if named is None or unsigned_timeout(named, "stop") is None:  # else it is reported at the human
            yield from _unsigned(effective_human(at.gate, declared), at.rejection, at.path)
        yield from _human(at.gate, at.path, at)
        if isinstance(at.gate.human, Human):
            yield from _human(at.gate.human, (*at.path, "human"), at)


def _human(human: Human, path: Path, gate: LocatedGate | None = None) -> Iterator[Diagnostic]:
    yield from _options(human, path, gate)
    if human.response_role == "system":
        message = "The answer would have the authority of the model's instructions."
        hint = "Write response_role: user."
        yield warning("W_HUMAN_RESPONSE_ROLE_SYSTEM", message, (*path, "response_role"), suggestion=hint)
    if human.on_reject == "continue":
        message = "A rejection does not stop the run: it continues with the next step."
        hint = "Leave on_reject out, or write stop."
        yield warning("W_HUMAN_REJECT_CONTINUES", message, (*path, "on_reject"), suggestion=hint)
    for name in NOT_HONOURED:
        if getattr(human, name):
            message = f"{name} is not supported yet, and a run that relied on it would be refused."
            yield error("E_HUMAN_NOT_HONOURED", message, (*path, name), suggestion=f"Leave {name} out.")
    for at, field in enumerate(human.fields):
        if field.secret:
            message = f"{field.name} is secret, and answers are stored: a run reads them again after a pause."
            hint = "Ask for the name of a secret, and keep its value in the environment of the process that runs steps."
            yield error("E_HUMAN_FIELD_SECRET", message, (*path, "fields", at, "secret"), suggestion=hint)
    yield from form_findings(human, path)


def _unsigned(human: Human, default_reject: str, path: Path, field: str = "on_timeout") -> Iterator[Diagnostic]:
    message = unsigned_timeout(human, default_reject)
    if message is not None:
        yield error("E_HUMAN_TIMEOUT_UNSIGNED", message, (*path, field), suggestion=UNSIGNED_HINT)


def _options(human: Human, path: Path, gate: LocatedGate | None) -> Iterator[Diagnostic]:
    options = human.options or ()
    hint = f"Write one of {', '.join(options)}." if options else "Write options."
    # A gate inherits the options of the human that it names, and a route has the choices of its router.
    inherits = isinstance(human, Gate) or (gate is not None and gate.position == "route")
    if human.default_option is not None and human.default_option not in options and not (inherits and not options):
        message = f"default_option is {human.default_option}, which is none of the options."
        code = "E_HUMAN_DEFAULT_OPTION_NOT_IN_OPTIONS"
        yield error(code, message, (*path, "default_option"), suggestion=hint)
    if human.request_type == "selection" and not options and not inherits:
        message = "A selection has no options."
        yield error("E_HUMAN_SELECTION_REQUIRES_OPTIONS", message, (*path, "options"), suggestion=hint)
    chosen = human.on_timeout.removeprefix("select:")
    if chosen != human.on_timeout and options and chosen not in options:
        message = f"on_timeout selects {chosen}, which is none of the options."
        yield error("E_HUMAN_TIMEOUT_OPTION", message, (*path, "on_timeout"), suggestion=hint)


LINEAR_HINT = "Write it without look-arounds, back references and atomic groups, and repeat at most 1000 times: the syntax of RE2."


def json_schemas(index: SpecIndex) -> Iterator[Diagnostic]:
    """The schemas of functions and tools can be used; those of answers are checked with the question."""
    for name, function in index.spec.components.functions.items():
        path: Path = ("components", "functions", name)
        if function.input_schema is not None:
            yield from schema_findings(function.input_schema, (*path, "input_schema"))
        if function.output_schema is not None:
            yield from schema_findings(function.output_schema, (*path, "output_schema"))
    for name, tool in index.spec.tools.items():
        yield from schema_findings(tool.parameters, ("tools", name, "parameters"))


def form_findings(human: Human, path: Path) -> Iterator[Diagnostic]:
    """Report the patterns and schemas of a question that cannot be used."""
    for number, field in enumerate(human.fields):
        if field.pattern is not None:
            yield from pattern_findings(field.pattern, (*path, "fields", number, "pattern"), "E_HUMAN_FIELD_REGEX")
    if human.answer_schema is not None:
        yield from schema_findings(human.answer_schema, (*path, "schema"))


def schema_findings(schema: Schema, path: Path) -> Iterator[Diagnostic]:
    """Report the flaws of a JSON Schema."""
    for flaw in find_flaws(schema) if schema else ():
        hint = LINEAR_HINT if flaw.code == "E_JSON_SCHEMA_REGEX_UNSAFE" else None
        yield error(flaw.code, flaw.message, (*path, *flaw.path), suggestion=hint)


def pattern_findings(pattern: str, path: Path, code: str) -> Iterator[Diagnostic]:
    """Report a pattern that cannot be used; ``code`` gets the ending ``_UNSAFE`` where it takes another engine."""
    flaw = find_flaw(pattern)
    if flaw is None:
        return
    if flaw.unsupported:
        yield error(f"{code}_UNSAFE", flaw.reason, path, suggestion=LINEAR_HINT)
    else:
        yield error(code, flaw.reason, path)


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
