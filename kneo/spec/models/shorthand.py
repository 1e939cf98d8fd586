"""The short ways to write things, and what they stand for.

Each function takes a plain value and returns the long form; a value that is not its shorthand comes back as it is,
so expanding twice changes nothing. The models and the normalisation both use these, so that a spec means the same
whether it is read by an editor's schema, by a rule or by the runtime.
"""

from __future__ import annotations

from collections.abc import Callable

Expand = Callable[[object], object]


def model(value: object) -> object:
    """``gpt-x`` is that model of the default provider."""
    return {"provider": "default", "name": value} if isinstance(value, str) else value


def strategy(value: object) -> object:
    """``react`` is the strategy of that type."""
    return {"type": value} if isinstance(value, str) else value


def tool_selection(value: object) -> object:
    """A list of tools is what is included."""
    return {"include": value} if isinstance(value, list) else value


def step(value: object) -> object:
    """A bare name is a step that runs the agent of that name."""
    return {"id": value, "kind": "agent", "ref": value} if isinstance(value, str) else value


def workflow(value: object) -> object:
    """A list is a sequential workflow, as is a map with steps and no type; ``group_chat`` is ``group-chat``."""
    if isinstance(value, list):
        return {"type": "sequential", "steps": value}
    if isinstance(value, dict):
        if "type" not in value and "steps" in value:
            return {"type": "sequential", **value}
        if value.get("type") == "group_chat":
            return {**value, "type": "group-chat"}
    return value


def condition(value: object) -> object:
    """``{any_of: […]}`` is the condition of that type, the same for ``all_of`` and ``not``; a text is an expression."""
    if isinstance(value, str):
        return {"type": "expression", "value": value}
    if isinstance(value, dict) and len(value) == 1:
        [(key, inner)] = value.items()
        if key in {"any_of", "all_of"}:
            return {"type": key, "conditions": inner}
        if key == "not":
            return {"type": key, "condition": inner}
    return value


def gate(value: object) -> object:
    """``true`` asks the default human; a name asks that one."""
    if value is True:
        return {}
    return {"human": value} if isinstance(value, str) else value


def human(value: object) -> object:
    """``timeout`` is ``timeout_seconds``, where only it is given."""
    return _renamed(value, "timeout", "timeout_seconds")


def answer_field(value: object) -> object:
    """``field_type`` is ``type``, where only it is given."""
    return _renamed(value, "field_type", "type")


def choices(value: object) -> object:
    """A list of steps is one choice for each, by its id."""
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and isinstance(item.get("id"), str) for item in value
    ):
        return value
    named: dict[str, object] = {}
    for item in value:
        if item["id"] in named:
            return value  # two choices of one name are refused where the list is checked
        about = {"description": item["description"]} if "description" in item else {}
        named[item["id"]] = {**about, "steps": [item]}
    return named


def selector(value: object) -> object:
    """A name is the function that chooses; a list holds conditions that choose."""
    if isinstance(value, str):
        return {"function": value}
    return {"conditions": value} if isinstance(value, list) else value


def _renamed(value: object, old: str, new: str) -> object:
    if isinstance(value, dict) and old in value and new not in value:
        return {(new if key == old else key): inner for key, inner in value.items()}
    return value
