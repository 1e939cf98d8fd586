"""Guardrails: items that are complete, do what their stage can do, and cannot stall what they guard."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.diagnostics import Diagnostic, error, warning
from kneo.spec.documents import Path
from kneo.spec.index import SpecIndex
from kneo.spec.models import Guardrail
from kneo.spec.patterns import find_flaw

TYPES = ("keyword", "regex", "function", "agent")

_ALWAYS = ("warn", "block", "retry", "escalate", "human_review")
ACTIONS = {
    "input": _ALWAYS,
    "output": (*_ALWAYS, "revise"),
    "tool": (*_ALWAYS, "revise", "redact"),
    "workflow": (*_ALWAYS, "revise", "redact"),
}
"""What a guardrail can do at each stage."""

LINEAR_HINT = "Write it without look-arounds, back references and atomic groups, and repeat at most 1000 times: the syntax of RE2."


def guardrails(view: SpecIndex) -> Iterator[Diagnostic]:
    """Every guardrail has what its type needs and an action that its stage has."""
    for at in view.agents:
        stages = at.agent.guardrails.stages() if at.agent.guardrails else {}
        for stage, items in stages.items():
            for index, item in enumerate(items):
                path = (*at.path, "guardrails", stage, index)
                yield from _fields(item, path)
                yield from _manner(item, stage, path)
                yield from _content(view, item, path)


def _fields(item: Guardrail, path: Path) -> Iterator[Diagnostic]:
    if not item.id:
        yield error("E_GUARDRAIL_FIELDS", "The guardrail has no id.", (*path, "id"), suggestion="Give it a name.")
    if not item.type:
        hint = f"Write one of {', '.join(TYPES)}."
        yield error("E_GUARDRAIL_FIELDS", "The guardrail has no type.", (*path, "type"), suggestion=hint)
    elif item.type not in TYPES:
        hint = f"Write one of {', '.join(TYPES)}."
        yield error("E_GUARDRAIL_TYPE", f"{item.type} is no type of guardrail.", (*path, "type"), suggestion=hint)


def _manner(item: Guardrail, stage: str, path: Path) -> Iterator[Diagnostic]:
    if item.mode != "middleware":
        message = f"The mode {item.mode} does not exist; a guardrail in it would never run."
        yield error("E_GUARDRAIL_MODE_UNSUPPORTED", message, (*path, "mode"), suggestion="Leave mode out.")
    if item.action not in ACTIONS[stage]:
        message = f"A guardrail at {stage} cannot {item.action}."
        hint = f"Write one of {', '.join(ACTIONS[stage])}."
        yield error("E_GUARDRAIL_ACTION_UNSUPPORTED", message, (*path, "action"), suggestion=hint)


def _content(view: SpecIndex, item: Guardrail, path: Path) -> Iterator[Diagnostic]:
    match item.type:
        case "regex":
            yield from _patterns(item, path)
        case "keyword":
            yield from _texts(item, "keywords", path)
        case "function":
            yield from _reference(view, item, path, view.function_names, "components.functions")
        case "agent":
            yield from _reference(view, item, path, frozenset(view.agent_names), "components.agents")
        case _:
            pass


def _reference(view: SpecIndex, item: Guardrail, path: Path, known: frozenset[str], place: str) -> Iterator[Diagnostic]:
    if item.ref is None:
        message = f"The guardrail {item.id} does not say which {item.type} it asks."
        yield error("E_GUARDRAIL_REF", message, (*path, "ref"), suggestion=f"Name one in {place}.")
    elif item.ref not in known:
        message = f"The guardrail {item.id} asks {item.ref}, which is not in {place}."
        hint = view.hints.near(item.ref, known) or f"Declare it in {place}."
        yield error("E_GUARDRAIL_REF", message, (*path, "ref"), suggestion=hint)


def _texts(item: Guardrail, key: str, path: Path) -> Iterator[Diagnostic]:
    """Find what keeps a list of texts from being one; an empty one guards nothing, which is allowed and rarely meant."""
    given = item.config.get(key)
    path = (*path, "config", key)
    if given is None or given == []:
        message = f"The guardrail {item.id} has no {key}; it never finds anything."
        yield warning("W_GUARDRAIL_EMPTY", message, path, suggestion=f"Write config.{key}.")
    elif not isinstance(given, list) or not all(isinstance(text, str) and text for text in given):
        yield error("E_GUARDRAIL_CONFIG", f"config.{key} must be a list of texts, none of them empty.", path)


def _patterns(item: Guardrail, path: Path) -> Iterator[Diagnostic]:
    given = item.config.get("patterns")
    yield from _texts(item, "patterns", path)
    for index, pattern in enumerate(given if isinstance(given, list) else ()):
        if isinstance(pattern, str):
            yield from pattern_findings(pattern, (*path, "config", "patterns", index), "E_GUARDRAIL_REGEX")


def pattern_findings(pattern: str, path: Path, code: str) -> Iterator[Diagnostic]:
    """Report a pattern that cannot be used; ``code`` gets the ending ``_UNSAFE`` where it takes another engine."""
    flaw = find_flaw(pattern)
    if flaw is None:
        return
    if flaw.unsupported:
        yield error(f"{code}_UNSAFE", flaw.reason, path, suggestion=LINEAR_HINT)
    else:
        yield error(code, flaw.reason, path)
