"""Locations of changes: the agent, tool, step or gate that a difference belongs to, and the sentences about it.

Differences are those between two trees of plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as field_of
from enum import IntEnum
from typing import Final, Literal, TypeAlias

from kneo.spec.base import MAX_QUOTED
from kneo.spec.diff.texts import Rows, look_alike, without_secrets
from kneo.spec.gates import REVIEW_POSITIONS, gate_position
from kneo.spec.models.human import Human

Keys: TypeAlias = tuple[str, ...]
"""Where something is, by names: ``("workflow", "steps", "approve", "ref")``."""


class Absent:
    """The absence of a value, which is not null."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = Absent()

Kind: TypeAlias = Literal["added", "removed", "changed", "moved"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference.

    Attributes:
        within: Whether something around it is new or gone as a whole, which is an difference of its own.
    """

    keys: Keys
    kind: Kind
    before: object = ABSENT
    after: object = ABSENT
    within: bool = False


@dataclass(frozen=True, slots=True)
class TreeShape:
    """What the maps of a tree are.

    Attributes:
        holds: Whether a map only holds other things, so that its coming and going is theirs.
        is_one: Whether a map or list is one value, to be named as a whole.
    """

    holds: Callable[[Keys], bool]
    is_one: Callable[[Keys], bool]


def compare(
    before: object, after: object, shape: TreeShape, keys: Keys = (), *, within: bool = False
) -> Iterator[Difference]:
    """Yield every difference, outer before inner. Equal trees yield nothing, different ones at least one difference."""
    if shape.is_one(keys):
        if not same(before, after):
            yield _difference(before, after, keys, within=within)
    elif isinstance(before, dict | Absent) and isinstance(after, dict | Absent):
        yield from _maps(before, after, shape, keys, within=within)
    elif isinstance(before, list | tuple | Absent) and isinstance(after, list | tuple | Absent):
        yield from _lists(before, after, shape, keys, within=within)
    elif not same(before, after):
        yield _difference(before, after, keys, within=within)


def same(before: object, after: object) -> bool:
    """Tell whether two plain values are the same; true is not 1, and 1 is not 1.0."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        return len(before) == len(after) and all(map(same, before, after))
    return type(before) is type(after) and before == after


def by_name(tree: object) -> object:
    """Return a tree with its lists of named maps as maps, so that every way leads straight down."""
    if isinstance(tree, dict):
        return {key: by_name(value) for key, value in tree.items()}
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        named = _named(tree)
        return [by_name(item) for item in tree] if named is None else by_name(named)
    return tree


def _difference(before: object, after: object, keys: Keys, *, within: bool) -> Difference:
    kind: Kind = "added" if before is ABSENT else "removed" if after is ABSENT else "changed"
    return Difference(keys, kind, before, after, within)


def _maps(
    before: Mapping[str, object] | Absent,
    after: Mapping[str, object] | Absent,
    shape: TreeShape,
    keys: Keys,
    *,
    within: bool,
) -> Iterator[Difference]:
    old = {} if isinstance(before, Absent) else before
    new = {} if isinstance(after, Absent) else after
    if (before is ABSENT or after is ABSENT) and not (shape.holds(keys) and (old or new)):
        yield _difference(before, after, keys, within=within)
        within = True
    for key in dict.fromkeys((*old, *new)):
        yield from compare(old.get(key, ABSENT), new.get(key, ABSENT), shape, (*keys, str(key)), within=within)


def _lists(
    before: Sequence[object] | Absent,
    after: Sequence[object] | Absent,
    shape: TreeShape,
    keys: Keys,
    *,
    within: bool,
) -> Iterator[Difference]:
    old = () if isinstance(before, Absent) else before
    new = () if isinstance(after, Absent) else after
    old_names, new_names = _named(old), _named(new)
    if old_names is None or new_names is None:
        if not same(before, after):
            yield _difference(before, after, keys, within=within)
        return
    if (before is ABSENT or after is ABSENT) and not old and not new:
        yield _difference(before, after, keys, within=within)
    for name in dict.fromkeys((*old_names, *new_names)):
        one, other = old_names.get(name, ABSENT), new_names.get(name, ABSENT)
        yield from compare(one, other, shape, (*keys, name), within=within)
    kept = [name for name in old_names if name in new_names]
    if kept != [name for name in new_names if name in old_names]:
        yield Difference(keys, "moved", list(old_names), list(new_names), within)


def _named(items: Sequence[object]) -> dict[str, object] | None:
    """Find the items of a list by id, edges by their ends, texts by themselves; None where that is not possible."""
    named: dict[str, object] = {}
    for item in items:
        name = _name(item) if isinstance(item, dict) else item
        if not isinstance(name, str) or name in named:
            return None
        named[name] = item
    return named


def _name(item: Mapping[str, object]) -> object:
    if "from" in item and "to" in item:
        return f"{item['from']} → {item['to']}"
    return item.get("id")


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
    if len(location.rest) < 2 or location.rest[0] != "review" or location.rest[1] not in REVIEW_POSITIONS:
        return location
    row = gate_position(location.rest[1], at_tool=location.owner == "tool")
    gate = location.down("gate", f"the question {(row.of_tool or row.where).format(location.name)}", 2)
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


MAX_NAMED = 20  # names of a new order that a sentence has; more are shown line by line

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
class SpecChange:
    """One change, or one fact of a first version.

    Attributes:
        danger: The level of attention that the change needs.
        area: The subject: permissions, domains, tools, gates, humans, prompts, models, steps, …
        message: One sentence.
        path: The path, by names.
        lines: All lines of a changed text: removed ones begin with ``-``, added ones with ``+``.
    """

    danger: Danger
    area: str
    message: str
    path: str
    lines: Rows = ()

    def as_json(self) -> dict[str, object]:
        """Return the JSON form, with all lines."""
        return {
            "danger": self.danger.name.lower(),
            "area": self.area,
            "message": self.message,
            "path": self.path,
            "lines": list(self.lines),
        }


@dataclass(frozen=True, slots=True)
class ChangeContext:
    """A change, its location, both specs, with lists by name, and the humans of the new one."""

    difference: Difference
    location: Location
    before: object
    after: object
    humans: Mapping[str, Human] = field_of(default_factory=dict)

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


def in_words(value: object, keys: Keys = ()) -> str | None:
    """Return a value as a sentence repeats it; None where it is too long for one, and has to be shown by its lines."""
    text = str(value).lower() if isinstance(value, bool) else repr(without_secrets(value, keys))
    return text if len(text) <= MAX_QUOTED else None


def value_change(change: ChangeContext, danger: Danger, area: str, what: str) -> Sentence:
    """Describe the old and new value, line by line where they have parts, are long, or look the same."""
    difference = change.difference
    if difference.kind == "moved":
        names = list(map(str, difference.after)) if isinstance(difference.after, list) else []
        if len(names) > MAX_NAMED:
            return Sentence(danger, area, start(f"{what} come in another order."), is_text=True)
        return Sentence(danger, area, start(f"{what} come in this order: {', '.join(names)}."))
    before, after = (in_words(value, difference.keys) for value in (difference.before, difference.after))
    if change.added:
        message = f"{what} is new." if after is None else f"{what} is {after}."
    elif change.removed:
        message = f"{what} is gone." if before is None else f"{what} is no longer {before}."
    elif before is None or after is None or look_alike(before, after) or _has_parts(difference):
        return Sentence(danger, area, start(f"{what} changes."), is_text=True)
    else:
        message = f"{what} changes from {before} to {after}."
    return Sentence(danger, area, start(message), is_text=(before if change.removed else after) is None)


def _has_parts(difference: Difference) -> bool:
    return isinstance(difference.before, dict | list) or isinstance(difference.after, dict | list)


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
