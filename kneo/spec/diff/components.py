"""Sentences about changes of tools, functions, servers, skills, workflows, steps, gates and humans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeGuard, get_args

from pydantic import ValidationError

from kneo.spec.diff.locations import (
    ABSENT,
    HIGH,
    LOW,
    MEDIUM,
    ChangeContext,
    Danger,
    Sentence,
    field,
    same,
    start,
    text,
    value_change,
)
from kneo.spec.diff.texts import NOT_SHOWN
from kneo.spec.models.human import Receipt, strongest
from kneo.spec.models.sandbox import NOTHING, Sandbox, widenings
from kneo.spec.models.spec import Tool
from kneo.spec.tool_kinds import CALL_TARGET, TOOL_KINDS


def tool(change: ChangeContext) -> Sentence:
    """Describe a change of a tool."""
    match change.location.rest:
        case ():
            words = _added_or_removed(change, "tools")
        case ("description",):
            words = text(change, MEDIUM, "prompts", "description")
        case ("mcp", "pin", *_):
            words = _pin(change)
        case (backing, *_) if backing in TOOL_KINDS:
            words = value_change(change, HIGH, "tools", f"{'.'.join(change.location.rest)} of {change.name}")
        case ("capabilities", name):
            words = _capability(change, name)
        case ("sandbox", *_):
            words = _sandbox(change)
        case ("parameters",):
            words = _parameters(change)
        case (("effects" | "on_interrupted" | "output") as key, *_):
            careful = {"effects": True, "on_interrupted": "ask", "output": "untrusted"}[key]
            return field(change, LOW if change.difference.after == careful else HIGH, "tools")
        case ("always_ask",):
            words = field(change, LOW if change.difference.after is True else HIGH, "gates")
        case _:
            words = field(change, MEDIUM, "tools")
    return words


_RAISED = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_LOWERED = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_TEXT_OF_SCHEMA = frozenset({"description", "title", "examples", "$comment"})


def _parameters(change: ChangeContext) -> Sentence:
    """Describe a change of the arguments of a tool; one with effects must not silently accept more than before."""
    what = f"parameters of {change.name}"
    opened = list(_opened(change.old("parameters"), change.new("parameters"), ""))
    if not opened or not (_has_effects(change.old()) or _has_effects(change.new())):
        return value_change(change, MEDIUM, "tools", what)
    words = value_change(change, HIGH, "permissions", what)
    return replace(words, message=f"{start(change.name)} accepts more than before: {'; '.join(opened)}.", is_text=True)


def _opened(before: object, after: object, argument: str) -> Iterator[str]:
    """Yield the limits of arguments that a JSON Schema drops, raises or changes."""
    old, new = (dict(each) if isinstance(each, dict) else {} for each in (before, after))
    of = f" of {argument}" if argument else ""
    for key, was in old.items():
        becomes = new.get(key)
        if same(was, becomes) or key in _TEXT_OF_SCHEMA or (key == "required" and _has_all(becomes, was)):
            continue
        if key == "properties" and isinstance(was, dict) and isinstance(becomes, dict):
            names = {name: f"{argument}.{name}" if argument else str(name) for name in (*was, *becomes)}
            yield from (f"{names[name]} is new" for name in becomes if name not in was)
            for name, schema in was.items():
                yield from _opened(schema, becomes.get(name), names[name])
        elif key == "items":
            yield from _opened(was, becomes, f"{argument}[]")
        elif key in _RAISED | _LOWERED and _is_number(was) and _is_number(becomes):
            if (becomes > was) == (key in _RAISED):
                yield f"the {key}{of} changes from {was} to {becomes}"
        elif not (key == "enum" and becomes is not None and _has_all(was, becomes)):
            yield f"the {key}{of} {'is gone' if becomes is None else 'changes'}"


def _has_all(many: object, few: object) -> bool:
    return isinstance(many, list) and isinstance(few, list) and all(each in many for each in few)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_effects(tool: object) -> bool:
    try:
        return Tool.model_validate(tool).has_effects
    except ValidationError:
        return tool is not ABSENT  # what cannot be judged may have effects


def _pin(change: ChangeContext) -> Sentence:
    """Describe a change of what a tool's server says about it."""
    match change.location.rest[2:]:
        case ():
            verb = "no longer" if change.removed else "now"
            message = f"{start(change.name)} is {verb} held to what its MCP server says about it."
            return Sentence(HIGH if change.removed else LOW, "tools", message)
        case ("description",):
            return text(change, HIGH, "prompts", "server's description")
        case _:
            return value_change(change, HIGH, "tools", f"the server's schema of {change.name}")


def function(change: ChangeContext) -> Sentence:
    """Describe a change of a function."""
    match change.location.rest:
        case ():
            return _added_or_removed(change, "functions")
        case ("implementation",):
            return value_change(change, HIGH, "functions", f"the implementation of {change.name}")
        case ("capabilities", name):
            return _capability(change, name)
        case ("sandbox", *_):
            return _sandbox(change)
        case ("description",):
            return field(change, LOW, "functions")
        case _:
            return field(change, MEDIUM, "functions")


def _added_or_removed(change: ChangeContext, area: str) -> Sentence:
    return Sentence(MEDIUM, area, f"{start(change.name)} is {'gone' if change.removed else 'new'}.")


def _capability(change: ChangeContext, name: str) -> Sentence:
    if change.removed:
        message = f"{start(change.name)} no longer declares {name}: its calls need no approval for it."
        return Sentence(HIGH, "permissions", message)
    return Sentence(HIGH, "permissions", f"{start(change.name)} declares {name}.")


def _sandbox(change: ChangeContext) -> Sentence:
    """Describe a change of what the processes of a call may do."""
    old, new = (_profile(each) for each in (change.old("sandbox"), change.new("sandbox")))
    key = change.location.rest[1:2]
    wider = [words for name, words in widenings(old, new) if key in {(), (name,)}]
    if wider:
        return Sentence(HIGH, "permissions", f"{start(change.name)} {', '.join(wider)}.")
    if "env" in key:
        return Sentence(MEDIUM, "permissions", f"{start(change.name)} has other variables in its sandbox.")
    return Sentence(LOW, "permissions", f"{start(change.name)} may do less in its sandbox.")


def _profile(declared: object) -> Sandbox:
    """Return a sandbox; one that is not declared is the default."""
    return NOTHING if declared is ABSENT or declared is None else Sandbox.model_validate(declared)


def server(change: ChangeContext) -> Sentence:
    """Describe a change of an MCP server; what it is given may be secret and is not repeated."""
    match change.location.rest:
        case ():
            return Sentence(
                HIGH if change.added else MEDIUM,
                "mcp",
                f"{start(change.name)} is {'gone' if change.removed else 'new'}.",
            )
        case (("env" | "headers") as which, *below):
            verb = "is new" if change.added else "is gone" if change.removed else "changes"
            return Sentence(
                HIGH, "mcp", start(f"{'.'.join((which, *below))} of {change.name} {verb}; its value {NOT_SHOWN[1:-1]}.")
            )
        case ("sandbox", *_):
            return _sandbox(change)
        case ("verify",) if change.difference.after is False:
            return Sentence(HIGH, "mcp", f"The certificate of {change.name} is no longer checked.")
        case (("command" | "args" | "cwd" | "url" | "sse_url" | "message_url" | "transport"), *_):
            return field(change, HIGH, "mcp")
        case _:
            return field(change, MEDIUM, "mcp")


def skill(change: ChangeContext) -> Sentence:
    """Describe a change of a skill."""
    match change.location.rest:
        case ():
            return _added_or_removed(change, "skills")
        case ("content",):
            return text(change, MEDIUM, "prompts", "instructions")
        case ("description",):
            return field(change, LOW, "skills")
        case _:
            return field(change, MEDIUM, "skills")


def edge(change: ChangeContext) -> Sentence:
    """Describe a change of a way between nodes."""
    if not change.location.rest:
        return _added_or_removed(change, "steps")
    return field(change, LOW if change.location.rest[0] in {"label", "from", "to"} else MEDIUM, "steps")


def workflow(change: ChangeContext) -> Sentence:
    """Describe a change of a workflow."""
    if not change.location.rest:
        return _added_or_removed(change, "steps")
    if change.difference.kind == "moved":
        return _order(change)
    aside = change.location.rest[0] in {"name", "description"} or change.difference.within
    return field(change, LOW if aside else MEDIUM, "steps")


def _order(change: ChangeContext) -> Sentence:
    """Describe a change of a new order; where a question is among what moved, it may now stand behind what it stood before."""
    members = change.new(*change.location.rest)
    steps = members.values() if isinstance(members, dict) else ()
    asks = any(isinstance(step, dict) and step.get("kind") == "human" for step in steps)
    danger, area = (HIGH, "gates") if asks else (MEDIUM, "steps")
    return value_change(change, danger, area, f"The {change.location.rest[-1]} of {change.name}")


_STEP: dict[str, tuple[Danger, str]] = {
    "description": (LOW, "steps"),
    "id": (LOW, "steps"),
    "timeout_seconds": (LOW, "steps"),
    "max_retries": (LOW, "steps"),
}


def step(change: ChangeContext) -> Sentence:
    """Describe a change of a step."""
    rest = change.location.rest
    if change.old("kind") == "human" or change.new("kind") == "human":
        return _question(change)
    if not rest:
        return _step(change)
    if change.difference.kind == "moved":
        return _order(change)
    if rest[0] == "choices" and len(rest) == 2:
        return Sentence(
            MEDIUM, "steps", f"The choice {rest[1]} at {change.name} is {'gone' if change.removed else 'new'}."
        )
    danger, area = _STEP.get(rest[0], (MEDIUM, "steps"))
    if rest == ("on_error",) and change.difference.after in ("continue", "fallback"):
        danger = HIGH
    if rest[0] in {"kind", "ref"} and change.difference.within:
        danger = LOW  # the sentence about the step says it
    return field(change, danger, area)


def _question(change: ChangeContext) -> Sentence:
    name = f"the question {change.location.keys[-1]}"
    match change.location.rest:
        case () if change.removed:
            words = Sentence(HIGH, "gates", f"{start(name)}, which asks {change.old('ref')}, is gone.")
        case ():
            words = Sentence(MEDIUM, "gates", f"{start(name)}, which asks {change.new('ref')}, is new.")
        case ("enabled",):
            off = change.difference.after is False
            words = Sentence(
                HIGH if off else MEDIUM, "gates", f"{start(name)} is {'no longer asked' if off else 'asked'}."
            )
        case (("kind" | "ref" | "on_error"), *_):
            words = field(change, LOW if change.difference.within else HIGH, "gates")
        case _:
            words = field(change, LOW, "gates")
    return words


def _step(change: ChangeContext) -> Sentence:
    if change.removed:
        return Sentence(MEDIUM, "steps", f"{start(change.name)} is gone.")
    ref = change.new("ref")
    does = f"{change.new('kind')} {ref}" if isinstance(ref, str) else str(change.new("kind"))
    return Sentence(MEDIUM, "steps", f"{start(change.name)} is new: {does!r}.")


def other(change: ChangeContext) -> Sentence:
    """Describe a change of what no sentence was written for, and of what a run may execute."""
    if change.difference.keys == ("targets", "agent"):
        may = "may no longer" if change.removed else "may"
        message = f"A run {may} execute the root agent alone, past the gates of the workflow."
        return Sentence(LOW if change.removed else HIGH, "gates", message)
    if change.difference.keys == ("targets", CALL_TARGET):
        may = "may no longer" if change.removed else "may"
        message = f"Other programs {may} call the tools of the root agent."
        return Sentence(LOW if change.removed else HIGH, "gates", message)
    return value_change(change, LOW, "other", ".".join(change.difference.keys))


_TEXTS = frozenset({"description", "prompt", "title"})
_WHO = frozenset({"human", "assignee", "candidates", "quorum", "escalate"})
_EFFECT = frozenset({"on_timeout", "on_reject", "decisions", "when", "sample", "max_retries", "grants", "key"})
_ANSWER = frozenset({"fields", "schema", "options", "default_option", "multiple", "request_type", "response_role"})


def human(change: ChangeContext) -> Sentence:
    """Describe a change of a human."""
    if not change.location.rest:
        danger = MEDIUM if change.removed else LOW
        return Sentence(danger, "humans", f"{start(change.name)} is {'gone' if change.removed else 'new'}.")
    return _asked(change, "humans")


def gate(change: ChangeContext) -> Sentence:
    """Describe a change of a gate."""
    if not change.location.rest:
        if change.removed:
            return Sentence(HIGH, "gates", f"{start(change.name)} is no longer asked.")
        return Sentence(MEDIUM, "gates", f"{start(change.name)} is asked from now on.")
    return _asked(change, "gates")


def _asked(change: ChangeContext, area: str) -> Sentence:
    key = change.location.rest[0]
    if change.location.rest in {(name,) for name in _TEXTS}:
        return text(change, MEDIUM, area, key)
    if key in _WHO:
        return _who(change, area)
    if key == "receipt":
        before, after = _proof(change.old("receipt")), _proof(change.new("receipt"))
        return field(change, LOW if strongest(before, after) == after else HIGH, area)
    if key in _EFFECT:
        danger: Danger = LOW if change.difference.within else HIGH
        return value_change(change, danger, area, f"{'.'.join(change.location.rest)} of {change.name}")
    if key in _ANSWER:
        return field(change, MEDIUM, area)
    return field(change, MEDIUM if key == "timeout_seconds" else LOW, area)


def _who(change: ChangeContext, area: str) -> Sentence:
    match change.location.rest:
        case ("candidates", "exclude", name):
            verb = "no longer excluded from" if change.removed else "excluded from"
            return Sentence(HIGH if change.removed else LOW, area, f"{name} is {verb} {change.name}.")
        case ("candidates", ("users" | "groups" | "roles") as kind, name):
            verb = "may no longer" if change.removed else "may now"
            who = name if kind == "users" else f"The {kind[:-1]} {name}"
            nobody_else = change.removed and change.new("candidates", kind) in (ABSENT, [])
            danger = LOW if change.removed and not nobody_else else MEDIUM if change.difference.within else HIGH
            return Sentence(danger, area, f"{who} {verb} decide at {change.name}.")
        case ("quorum", *_):
            return field(change, LOW if _more(change) else HIGH, area)
        case _:
            return field(change, LOW if change.difference.within else HIGH, area)


def _proof(value: object) -> str | None:
    return value if isinstance(value, str) and value in get_args(Receipt) else None


def _more(change: ChangeContext) -> bool:
    before, after = change.difference.before, change.difference.after
    if isinstance(before, int) and isinstance(after, int):
        return after > before
    return change.added
