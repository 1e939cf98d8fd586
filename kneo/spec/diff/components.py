"""Sentences about changes of tools, functions, servers, skills, workflows, steps, gates and humans."""

from __future__ import annotations

from typing import get_args

from kneo.spec.diff.locations import HIGH, LOW, MEDIUM, ChangeContext, Danger, Sentence, field, said, start, text
from kneo.spec.diff.tree import ABSENT
from kneo.spec.messages import quote
from kneo.spec.models.human import Receipt, strongest


def tool(spot: ChangeContext) -> Sentence:
    """Speak of a tool."""
    match spot.place.rest:
        case ():
            return _came_or_went(spot, "tools")
        case ("description",):
            return text(spot, MEDIUM, "prompts", "description")
        case (("implementation" | "agent" | "mcp"), *_):
            return said(spot, HIGH, "tools", f"{'.'.join(spot.place.rest)} of {spot.name}")
        case ("capabilities", name):
            return _capability(spot, name)
        case ("always_ask",):
            return field(spot, LOW if spot.event.after is True else HIGH, "gates")
        case _:
            return field(spot, MEDIUM, "tools")


def function(spot: ChangeContext) -> Sentence:
    """Speak of a function."""
    match spot.place.rest:
        case ():
            return _came_or_went(spot, "functions")
        case ("implementation",):
            return said(spot, HIGH, "functions", f"the implementation of {spot.name}")
        case ("capabilities", name):
            return _capability(spot, name)
        case ("description",):
            return field(spot, LOW, "functions")
        case _:
            return field(spot, MEDIUM, "functions")


def _came_or_went(spot: ChangeContext, area: str) -> Sentence:
    return Sentence(MEDIUM, area, f"{start(spot.name)} is {'gone' if spot.gone else 'new'}.")


def _capability(spot: ChangeContext, name: str) -> Sentence:
    if spot.gone:
        message = f"{start(spot.name)} no longer declares {name}: nobody needs to agree to its calls for that."
        return Sentence(HIGH, "permissions", message)
    return Sentence(HIGH, "permissions", f"{start(spot.name)} declares {name}.")


def server(spot: ChangeContext) -> Sentence:
    """Speak of an MCP server; what it is given may be secret and is not repeated."""
    match spot.place.rest:
        case ():
            return Sentence(
                HIGH if spot.came else MEDIUM, "mcp", f"{start(spot.name)} is {'gone' if spot.gone else 'new'}."
            )
        case (("env" | "headers") as which, *below):
            verb = "is new" if spot.came else "is gone" if spot.gone else "changes"
            return Sentence(HIGH, "mcp", start(f"{'.'.join((which, *below))} of {spot.name} {verb}."))
        case ("verify",) if spot.event.after is False:
            return Sentence(HIGH, "mcp", f"The certificate of {spot.name} is no longer checked.")
        case (("command" | "args" | "cwd" | "url" | "sse_url" | "message_url" | "transport"), *_):
            return field(spot, HIGH, "mcp")
        case _:
            return field(spot, MEDIUM, "mcp")


def skill(spot: ChangeContext) -> Sentence:
    """Speak of a skill."""
    match spot.place.rest:
        case ():
            return _came_or_went(spot, "skills")
        case ("content",):
            return text(spot, MEDIUM, "prompts", "instructions")
        case ("description",):
            return field(spot, LOW, "skills")
        case _:
            return field(spot, MEDIUM, "skills")


def edge(spot: ChangeContext) -> Sentence:
    """Speak of a way between nodes."""
    if not spot.place.rest:
        return _came_or_went(spot, "steps")
    return field(spot, LOW if spot.place.rest[0] in {"label", "from", "to"} else MEDIUM, "steps")


def workflow(spot: ChangeContext) -> Sentence:
    """Speak of a workflow."""
    if not spot.place.rest:
        return _came_or_went(spot, "steps")
    if spot.event.kind == "moved":
        return _order(spot)
    aside = spot.place.rest[0] in {"name", "description"} or spot.event.within
    return field(spot, LOW if aside else MEDIUM, "steps")


def _order(spot: ChangeContext) -> Sentence:
    """Speak of a new order; where a question is among what moved, it may now stand behind what it stood before."""
    members = spot.new(*spot.place.rest)
    steps = members.values() if isinstance(members, dict) else ()
    asks = any(isinstance(step, dict) and step.get("kind") == "human" for step in steps)
    danger, area = (HIGH, "gates") if asks else (MEDIUM, "steps")
    return said(spot, danger, area, f"The {spot.place.rest[-1]} of {spot.name}")


_STEP: dict[str, tuple[Danger, str]] = {
    "description": (LOW, "steps"),
    "id": (LOW, "steps"),
    "timeout_seconds": (LOW, "steps"),
    "max_retries": (LOW, "steps"),
}


def step(spot: ChangeContext) -> Sentence:
    """Speak of a step."""
    rest = spot.place.rest
    if spot.old("kind") == "human" or spot.new("kind") == "human":
        return _question(spot)
    if not rest:
        return _step(spot)
    if spot.event.kind == "moved":
        return _order(spot)
    if rest[0] == "choices" and len(rest) == 2:
        return Sentence(MEDIUM, "steps", f"The choice {rest[1]} at {spot.name} is {'gone' if spot.gone else 'new'}.")
    danger, area = _STEP.get(rest[0], (MEDIUM, "steps"))
    if rest == ("on_error",) and spot.event.after in ("continue", "fallback"):
        danger = HIGH
    if rest[0] in {"kind", "ref"} and spot.event.within:
        danger = LOW  # the sentence about the step says it
    return field(spot, danger, area)


def _question(spot: ChangeContext) -> Sentence:
    name = f"the question {spot.place.keys[-1]}"
    match spot.place.rest:
        case () if spot.gone:
            words = Sentence(HIGH, "gates", f"{start(name)}, which asks {spot.old('ref')}, is gone.")
        case ():
            words = Sentence(MEDIUM, "gates", f"{start(name)}, which asks {spot.new('ref')}, is new.")
        case ("enabled",):
            off = spot.event.after is False
            words = Sentence(
                HIGH if off else MEDIUM, "gates", f"{start(name)} is {'no longer asked' if off else 'asked'}."
            )
        case (("kind" | "ref" | "on_error"), *_):
            words = field(spot, LOW if spot.event.within else HIGH, "gates")
        case _:
            words = field(spot, LOW, "gates")
    return words


def _step(spot: ChangeContext) -> Sentence:
    if spot.gone:
        return Sentence(MEDIUM, "steps", f"{start(spot.name)} is gone.")
    ref = spot.new("ref")
    does = f"{spot.new('kind')} {ref}" if isinstance(ref, str) else str(spot.new("kind"))
    return Sentence(MEDIUM, "steps", f"{start(spot.name)} is new: {quote(does)}.")


def other(spot: ChangeContext) -> Sentence:
    """Speak of what no sentence was written for, and of what a run may execute."""
    if spot.event.keys == ("targets", "agent"):
        may = "may no longer" if spot.gone else "may"
        message = f"A run {may} execute the root agent alone, past the gates of the workflow."
        return Sentence(LOW if spot.gone else HIGH, "gates", message)
    return said(spot, LOW, "other", ".".join(spot.event.keys))


_TEXTS = frozenset({"description", "prompt", "title"})
_WHO = frozenset({"human", "assignee", "candidates", "quorum", "escalate"})
_EFFECT = frozenset({"on_timeout", "on_reject", "decisions", "when", "sample", "max_retries", "grants", "key"})
_ANSWER = frozenset({"fields", "schema", "options", "default_option", "multiple", "request_type", "response_role"})


def human(spot: ChangeContext) -> Sentence:
    """Speak of somebody who is asked."""
    if not spot.place.rest:
        danger = MEDIUM if spot.gone else LOW
        return Sentence(danger, "humans", f"{start(spot.name)} is {'gone' if spot.gone else 'new'}.")
    return _asked(spot, "humans")


def gate(spot: ChangeContext) -> Sentence:
    """Speak of a question at a step or a tool."""
    if not spot.place.rest:
        if spot.gone:
            return Sentence(HIGH, "gates", f"{start(spot.name)} is no longer asked.")
        return Sentence(MEDIUM, "gates", f"{start(spot.name)} is asked from now on.")
    return _asked(spot, "gates")


def _asked(spot: ChangeContext, area: str) -> Sentence:
    key = spot.place.rest[0]
    if spot.place.rest in {(name,) for name in _TEXTS}:
        return text(spot, MEDIUM, area, key)
    if key in _WHO:
        return _who(spot, area)
    if key == "receipt":
        before, after = _proof(spot.old("receipt")), _proof(spot.new("receipt"))
        return field(spot, LOW if strongest(before, after) == after else HIGH, area)
    if key in _EFFECT:
        danger: Danger = LOW if spot.event.within else HIGH
        return said(spot, danger, area, f"{'.'.join(spot.place.rest)} of {spot.name}")
    if key in _ANSWER:
        return field(spot, MEDIUM, area)
    return field(spot, MEDIUM if key == "timeout_seconds" else LOW, area)


def _who(spot: ChangeContext, area: str) -> Sentence:
    match spot.place.rest:
        case ("candidates", "exclude", name):
            if spot.gone:
                return Sentence(HIGH, area, f"{start(name)} may now answer {spot.name}.")
            return Sentence(LOW, area, f"{start(name)} may not answer {spot.name}.")
        case ("candidates", ("users" | "groups" | "roles") as kind, name):
            verb = "may no longer" if spot.gone else "may"
            nobody_else = spot.gone and spot.new("candidates", kind) in (ABSENT, [])
            danger = LOW if spot.gone and not nobody_else else MEDIUM if spot.event.within else HIGH
            return Sentence(danger, area, f"{start(kind[:-1])} {name} {verb} answer {spot.name}.")
        case ("quorum", *_):
            return field(spot, LOW if _more(spot) else HIGH, area)
        case _:
            return field(spot, LOW if spot.event.within else HIGH, area)


def _proof(value: object) -> str | None:
    return value if isinstance(value, str) and value in get_args(Receipt) else None


def _more(spot: ChangeContext) -> bool:
    before, after = spot.event.before, spot.event.after
    if isinstance(before, int) and isinstance(after, int):
        return after > before
    return spot.came
