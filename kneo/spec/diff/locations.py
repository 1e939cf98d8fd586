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
    """Where a change is.

    Attributes:
        owner: The kind of thing it belongs to.
        name: How a sentence calls that thing.
        keys: The way to that thing.
        rest: The way from there; empty where the thing itself came or went.
    """

    owner: Owner
    name: str
    keys: Keys
    rest: Keys

    def down(self, owner: Owner, name: str, count: int) -> Location:
        """Go on to a thing inside, ``count`` keys below."""
        return Location(owner, name, (*self.keys, *self.rest[:count]), self.rest[count:])


def location_of(keys: Keys) -> Location:
    """Find what a way leads to."""
    if keys[:1] == ("agent",):
        return Location("agent", "the root agent", keys[:1], keys[1:])
    if keys[:1] == ("workflow",):
        return _in_workflow(Location("workflow", "the workflow", keys[:1], keys[1:]))
    if keys[:1] == ("components",) and len(keys) >= 3 and keys[1] in _COMPONENTS:
        owner = _COMPONENTS[keys[1]]
        place = Location(owner, f"the {owner} {keys[2]}", keys[:3], keys[3:])
        return _in_workflow(place) if owner == "workflow" else place
    if len(keys) >= 2 and keys[0] in _ROOTS:
        owner = _ROOTS[keys[0]]
        what = "MCP server" if owner == "server" else owner
        return _at_gate(Location(owner, f"the {what} {keys[1]}", keys[:2], keys[2:]))
    return Location("other", ".".join(keys), keys, ())


def _in_workflow(place: Location) -> Location:
    if len(place.rest) >= 2 and place.rest[0] in {"steps", "nodes", "participants"}:
        return _in_step(place.down("step", f"the step {place.rest[1]}", 2))
    if len(place.rest) >= 2 and place.rest[0] == "edges":
        return place.down("edge", f"the way {place.rest[1]}", 2)
    return place


def _in_step(place: Location) -> Location:
    rest = place.rest
    while True:
        if len(rest) >= 2 and rest[0] in {"steps", "else"}:
            place = place.down("step", f"the step {rest[1]}", 2)
        elif len(rest) >= 4 and rest[0] == "choices" and rest[2] == "steps":
            place = place.down("step", f"the step {rest[3]}", 4)
        else:
            return _at_gate(place)
        rest = place.rest


def _at_gate(place: Location) -> Location:
    if len(place.rest) < 2 or place.rest[0] != "review" or place.rest[1] not in _MOMENTS:
        return place
    gate = place.down("gate", f"the question {_MOMENTS[place.rest[1]].format(place.name)}", 2)
    return replace(gate, rest=gate.rest[1:]) if len(gate.rest) > 1 and gate.rest[0] == "human" else gate


def look(tree: object, keys: Keys) -> object:
    """Return what is at a way through a tree that was made by :func:`by_name`, or ABSENT."""
    for key in keys:
        if not isinstance(tree, dict):
            return ABSENT
        tree = tree.get(key, ABSENT)
    return tree


_HOLDERS = frozenset({"tools", "review", "guardrails", "policies", "extra", "config", "nodes", "choices", "candidates"})
_ONE = frozenset(
    {"when", "until", "condition", "selector", "parameters", "input_schema", "output_schema", "schema", "fields"}
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
"""The maps of a spec."""


class Danger(IntEnum):
    """How closely to look at a change, from least to most."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3

    @property
    def words(self) -> str:
        """What to do with it."""
        return {Danger.HIGH: "to check", Danger.MEDIUM: "to read", Danger.LOW: "minor"}[self]

    @property
    def sign(self) -> str:
        """A mark for lists."""
        return {Danger.HIGH: "‼", Danger.MEDIUM: "•", Danger.LOW: "·"}[self]


MAX_NAMED = 20  # names of a new order that a sentence has

LOW, MEDIUM, HIGH = Danger.LOW, Danger.MEDIUM, Danger.HIGH


@dataclass(frozen=True, slots=True)
class Sentence:
    """What to say of a change.

    Attributes:
        is_text: Whether the values are worth showing line by line.
    """

    danger: Danger
    area: str
    message: str
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class ChangeContext:
    """A change, what it belongs to, and the whole on both sides, with lists by name."""

    event: Difference
    place: Location
    before: object
    after: object

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def gone(self) -> bool:
        return self.event.kind == "removed"

    @property
    def came(self) -> bool:
        return self.event.kind == "added"

    def old(self, *rest: str) -> object:
        """Return what the old spec has below the thing."""
        return look(self.before, (*self.place.keys, *rest))

    def new(self, *rest: str) -> object:
        """Return what the new spec has below the thing."""
        return look(self.after, (*self.place.keys, *rest))


def start(text: str) -> str:
    """Begin a sentence with it."""
    return text[:1].upper() + text[1:]


def turned(spot: ChangeContext, what: str) -> str:
    """Say from what to what something turned."""
    event = spot.event
    if event.kind == "moved":
        names = event.after if isinstance(event.after, list) else []
        return f"{what} come in this order: {', '.join(map(str, names[:MAX_NAMED]))}."
    if event.kind == "changed" and not (_plain(event.before) and _plain(event.after)):
        return f"{what} changes."
    if event.kind == "changed":
        return f"{what} changes from {quote(event.before)} to {quote(event.after)}."
    if spot.came:
        return f"{what} is {quote(event.after)}."
    return f"{what} is no longer {quote(event.before)}."


def _plain(value: object) -> bool:
    return not isinstance(value, dict | list)


def said(spot: ChangeContext, danger: Danger, area: str, what: str) -> Sentence:
    """Say from what to what something turned, line by line where it has parts."""
    event = spot.event
    parts = event.kind == "changed" and not (_plain(event.before) and _plain(event.after))
    return Sentence(danger, area, start(turned(spot, what)), is_text=parts)


def field(spot: ChangeContext, danger: Danger, area: str) -> Sentence:
    """Say what became of one setting of a thing."""
    rest = spot.place.rest
    if len(rest) > 1 and rest[-1] in (spot.event.before, spot.event.after):  # an item of a list of names
        verb = "gets" if spot.came else "loses"
        return Sentence(danger, area, f"{start(spot.name)} {verb} {rest[-1]} in {'.'.join(rest[:-1])}.")
    if rest[-1] == "description":
        danger = LOW
    return said(spot, danger, area, f"{'.'.join(rest)} of {spot.name}")


def text(spot: ChangeContext, danger: Danger, area: str, what: str) -> Sentence:
    """Say that a text changed, whose lines are then shown."""
    verb = "is new" if spot.came else "is gone" if spot.gone else "changes"
    return Sentence(danger, area, f"The {what} of {spot.name} {verb}.", is_text=True)
