"""What a place in a spec belongs to: an agent, a tool, a step, a gate, … and what is left of the way below it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from kneo.spec.diff.tree import ABSENT, Keys, TreeShape

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
