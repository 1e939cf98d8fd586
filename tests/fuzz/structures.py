"""Mutations of the structure of a file: nodes of another kind, copies, gaps, nesting, keys that are no text."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, Sequence
from typing import TypeAlias

import yaml

Node: TypeAlias = object
Slot: TypeAlias = tuple[MutableMapping[object, Node] | MutableSequence[Node], object]
"""A place of a node: the map or list that holds it, and its key or index there."""

MAX_NODES = 20_000
"""The most nodes that a mutated file may grow to: copies of copies double it each time."""

OTHER_KINDS: Sequence[Callable[[Node], Node]] = (
    lambda _: None,
    lambda _: True,
    lambda _: 0,
    lambda _: -1.5,
    lambda _: 10**18,
    lambda _: "",
    lambda _: "*",
    lambda _: {},
    lambda _: [],
    lambda old: {"a": old},
    lambda old: [old],
    lambda old: [old, old],
    lambda old: [[[old]]],
    lambda old: {"type": old, "kind": old, "ref": old, "id": old},
    lambda _: {"steps": [{"id": {}}]},
    lambda old: list(old) if isinstance(old, dict) else dict.fromkeys(old) if _is_texts(old) else str(old),
    lambda old: list(old.values()) if isinstance(old, dict) else [old],
)
ODD_KEYS: Sequence[object] = (1, 1.5, True, None, "", " ", "__delete__", "id", "kind", "type", "a" * 300)


def mutated(tree: Node, dice: random.Random, trees: Sequence[Node]) -> Node:
    """Return a tree with one node changed or a few; the given one stays as it is.

    Args:
        tree: Plain maps, lists and scalars.
        dice: The source of chance.
        trees: Other trees, whose nodes are put into this one.
    """
    holder: dict[object, Node] = {"file": copy.deepcopy(tree)}
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        slots = list(_slots(holder))
        if not 0 < len(slots) <= MAX_NODES:
            break
        _mutate(dice.choice(slots), slots, dice, trees)
    return holder.get("file")


def written(tree: Node, *, as_json: bool) -> bytes:
    """Return a tree as YAML or JSON; JSON makes texts of keys."""
    if as_json:
        return json.dumps(tree).encode()
    return yaml.dump(tree, Dumper=_Writer, sort_keys=False, allow_unicode=True, encoding="utf-8")


class _Writer(yaml.CSafeDumper):
    """Writes every node out: many copies of one node are not aliases of it, which are bounded for themselves."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _slots(holder: MutableMapping[object, Node] | MutableSequence[Node]) -> Iterator[Slot]:
    """Yield every place below a map or list."""
    pending = [holder]
    while pending:
        container = pending.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            yield container, key
            inner = container[key]  # type: ignore[index]  # a key of this very container
            if isinstance(inner, dict | list):
                pending.append(inner)


def _mutate(slot: Slot, slots: Sequence[Slot], dice: random.Random, trees: Sequence[Node]) -> None:
    container, key = slot
    old = container[key]  # type: ignore[index]  # a key of this very container
    match dice.randrange(6):
        case 0 | 1:
            container[key] = dice.choice(OTHER_KINDS)(old)  # type: ignore[index]
        case 2:
            other, where = dice.choice(slots)
            container[key] = copy.deepcopy(other[where])  # type: ignore[index]
        case 3:
            elsewhere = list(_slots([dice.choice(trees)]))
            other, where = dice.choice(elsewhere)
            container[key] = copy.deepcopy(other[where])  # type: ignore[index]
        case 4 if isinstance(container, list):
            at = int(str(key))
            container[at:at] = [copy.deepcopy(old) for _ in range(dice.choice([0, 1, 1, 30]))]
            if dice.random() < 0.5:
                del container[at]
        case _ if isinstance(container, dict):
            del container[key]
            if dice.random() < 0.5:
                container[dice.choice(ODD_KEYS)] = old


def _is_texts(value: Node) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
