"""Differences between two trees of plain values.

Items of lists are matched by id, edges by their ends and names by themselves, so that a new first step does not change
the paths of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

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
