"""Strongly connected components of a graph: which of its nodes lead back to themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Node = TypeVar("Node")


def components(starts: Iterable[Node], after: Callable[[Node], Iterable[Node]]) -> Iterator[list[Node]]:
    """Yield the strongly connected components that can be reached, each after those it leads to (Tarjan 1972).

    It keeps its own stack, so that the length of a chain is bounded by memory and not by the interpreter.
    """
    order: dict[Node, int] = {}
    low: dict[Node, int] = {}
    open_nodes: list[Node] = []
    is_open: set[Node] = set()
    for start in starts:
        if start in order:
            continue
        calls: list[tuple[Node, Iterator[Node]]] = []
        _enter(start, after, order, low, open_nodes, is_open, calls)
        while calls:
            node, ahead = calls[-1]
            following = next(ahead, None)
            if following is None:
                calls.pop()
                if calls:
                    parent = calls[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == order[node]:
                    yield _close(node, open_nodes, is_open)
            elif following not in order:
                _enter(following, after, order, low, open_nodes, is_open, calls)
            elif following in is_open:
                low[node] = min(low[node], order[following])


def _enter(
    node: Node,
    after: Callable[[Node], Iterable[Node]],
    order: dict[Node, int],
    low: dict[Node, int],
    open_nodes: list[Node],
    is_open: set[Node],
    calls: list[tuple[Node, Iterator[Node]]],
) -> None:
    order[node] = low[node] = len(order)
    open_nodes.append(node)
    is_open.add(node)
    calls.append((node, iter(after(node))))


def _close(node: Node, open_nodes: list[Node], is_open: set[Node]) -> list[Node]:
    members: list[Node] = []
    while not members or members[-1] != node:
        members.append(open_nodes.pop())
        is_open.discard(members[-1])
    return members
