"""Locations of changes: the agent, tool, step or gate that a difference belongs to, and the sentences about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, TypeAlias

from kneo.spec.diff.tree import ABSENT, Difference, Keys, TreeShape
from kneo.spec.messages import quote

Owner: TypeAlias = Literal[
    "agent", "workflow", "function", "human", "tool", "skill", "server", "step", "gate", "edge", "other"
]

_COMPONENTS: dict[str, Owner] = {
    "agents": "agent",
    "workflows": "workflow",
    "functions": "function",
    "humans": "human",
}
_ROOTS: dict[str, Owner] = {"tools": "tool", "skills": "skill", "mcp_servers": "server"}

_MOMENTS = {
    "before": "before {}",
    "after": "after {}",
    "each": "after each round of {}",
    "route": "which way to go at {}",
    "error": "when {} fails",
    "external": "for the result of {}",
}


@dataclass(frozen=True, slots=True)
class Location:
    """The location of a change.

    Attributes:
        owner: The kind of part that changed.
        name: The name of the part in a sentence.
        keys: The path of the part.
        rest: The path below it; empty where the part itself was added or removed.
    """

    owner: Owner
    name: str
    keys: Keys
    rest: Keys

    def down(self, owner: Owner, name: str, count: int) -> Location:
        """Return the location of an inner part, ``count`` keys below."""
        return Location(owner, name, (*self.keys, *self.rest[:count]), self.rest[count:])


def location_of(keys: Keys) -> Location:
    """Return the location of a path."""
    if keys[:1] == ("agent",):
        return Location("agent", "the root agent", keys[:1], keys[1:])
    if keys[:1] == ("workflow",):
        return _in_workflow(Location("workflow", "the workflow", keys[:1], keys[1:]))
    if keys[:1] == ("components",) and len(keys) >= 3 and keys[1] in _COMPONENTS:
        owner = _COMPONENTS[keys[1]]
        location = Location(owner, f"the {owner} {keys[2]}", keys[:3], keys[3:])
        return _in_workflow(location) if owner == "workflow" else location
    if len(keys) >= 2 and keys[0] in _ROOTS:
        owner = _ROOTS[keys[0]]
        what = "MCP server" if owner == "server" else owner
        return _at_gate(Location(owner, f"the {what} {keys[1]}", keys[:2], keys[2:]))
    return Location("other", ".".join(keys), keys, ())


def _in_workflow(location: Location) -> Location:
    if len(location.rest) >= 2 and location.rest[0] in {"steps", "nodes", "participants"}:
        return _in_step(location.down("step", f"the step {location.rest[1]}", 2))
    if len(location.rest) >= 2 and location.rest[0] == "edges":
        return location.down("edge", f"the way {location.rest[1]}", 2)
    return location


def _in_step(location: Location) -> Location:
    rest = location.rest
    while True:
        if len(rest) >= 2 and rest[0] in {"steps", "else"}:
            location = location.down("step", f"the step {rest[1]}", 2)
        elif len(rest) >= 4 and rest[0] == "choices" and rest[2] == "steps":
            location = location.down("step", f"the step {rest[3]}", 4)
        else:
            return _at_gate(location)
        rest = location.rest


def _at_gate(location: Location) -> Location:
    if len(location.rest) < 2 or location.rest[0] != "review" or location.rest[1] not in _MOMENTS:
        return location
    gate = location.down("gate", f"the question {_MOMENTS[location.rest[1]].format(location.name)}", 2)
    return replace(gate, rest=gate.rest[1:]) if len(gate.rest) > 1 and gate.rest[0] == "human" else gate


def value_at(tree: object, keys: Keys) -> object:
    """Return what is at a way through a tree that was made by :func:`by_name`, or ABSENT."""
    for key in keys:
        if not isinstance(tree, dict):
            return ABSENT
        tree = tree.get(key, ABSENT)
    return tree


_HOLDERS = frozenset({"tools", "review", "guardrails", "policies", "extra", "config", "nodes", "choices", "candidates"})
_ONE = frozenset(
    {
        "when",
        "until",
        "condition",
        "selector",
        "parameters",
        "input_schema",
        "output_schema",
        "schema",
        "fields",
        "returns",
        "body",
    }
)
_TOP = frozenset({"components", *_ROOTS})


def _holds(keys: Keys) -> bool:
    if len(keys) <= 1:
        return keys == () or keys[0] in _TOP
    if len(keys) == 2 and keys[0] == "components":
        return keys[1] in _COMPONENTS
    rest = location_of(keys).rest
    return bool(rest) and rest[-1] in _HOLDERS


def _is_one(keys: Keys) -> bool:
    rest = location_of(keys).rest
    return bool(rest) and rest[-1] in _ONE


SPEC = TreeShape(_holds, _is_one)
"""The maps of a spec: containers, and single values."""


class Danger(IntEnum):
    """The level of attention that a change needs, from least to most."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3

    @property
    def words(self) -> str:
        """The action for an approver."""
        return {Danger.HIGH: "to check", Danger.MEDIUM: "to read", Danger.LOW: "minor"}[self]

    @property
    def sign(self) -> str:
        """A mark for lists."""
        return {Danger.HIGH: "‼", Danger.MEDIUM: "•", Danger.LOW: "·"}[self]


MAX_NAMED = 20  # names of a new order that a sentence has

LOW, MEDIUM, HIGH = Danger.LOW, Danger.MEDIUM, Danger.HIGH


@dataclass(frozen=True, slots=True)
class Sentence:
    """The sentence about a change.

    Attributes:
        is_text: Whether the diff shows the values line by line.
    """

    danger: Danger
    area: str
    message: str
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class ChangeContext:
    """A change, its location, and both specs, with lists by name."""

    difference: Difference
    location: Location
    before: object
    after: object

    @property
    def name(self) -> str:
        return self.location.name

    @property
    def removed(self) -> bool:
        return self.difference.kind == "removed"

    @property
    def added(self) -> bool:
        return self.difference.kind == "added"

    def old(self, *rest: str) -> object:
        """Return the value of the old spec below the part."""
        return value_at(self.before, (*self.location.keys, *rest))

    def new(self, *rest: str) -> object:
        """Return the value of the new spec below the part."""
        return value_at(self.after, (*self.location.keys, *rest))


def start(text: str) -> str:
    """Capitalize the first letter of a text."""
    return text[:1].upper() + text[1:]


def _value_message(change: ChangeContext, what: str) -> str:
    """Describe the old and new value."""
    difference = change.difference
    if difference.kind == "moved":
        names = difference.after if isinstance(difference.after, list) else []
        return f"{what} come in this order: {', '.join(map(str, names[:MAX_NAMED]))}."
    if difference.kind == "changed" and not (_plain(difference.before) and _plain(difference.after)):
        return f"{what} changes."
    if difference.kind == "changed":
        return f"{what} changes from {quote(difference.before)} to {quote(difference.after)}."
    if change.added:
        return f"{what} is {quote(difference.after)}."
    return f"{what} is no longer {quote(difference.before)}."


def _plain(value: object) -> bool:
    return not isinstance(value, dict | list)


def value_change(change: ChangeContext, danger: Danger, area: str, what: str) -> Sentence:
    """Describe the old and new value, line by line where they have parts."""
    difference = change.difference
    parts = difference.kind == "changed" and not (_plain(difference.before) and _plain(difference.after))
    return Sentence(danger, area, start(_value_message(change, what)), is_text=parts)


def field(change: ChangeContext, danger: Danger, area: str) -> Sentence:
    """Describe the change of one field of a part."""
    rest = change.location.rest
    if len(rest) > 1 and rest[-1] in (change.difference.before, change.difference.after):  # an item of a list of names
        verb = "gets" if change.added else "loses"
        return Sentence(danger, area, f"{start(change.name)} {verb} {rest[-1]} in {'.'.join(rest[:-1])}.")
    if rest[-1] == "description":
        danger = LOW
    return value_change(change, danger, area, f"{'.'.join(rest)} of {change.name}")


def text(change: ChangeContext, danger: Danger, area: str, what: str) -> Sentence:
    """Describe the change of a text, whose lines the diff shows."""
    verb = "is new" if change.added else "is gone" if change.removed else "changes"
    return Sentence(danger, area, f"The {what} of {change.name} {verb}.", is_text=True)
