"""Whether an automaton has a loop that reads the same text in two ways: exponential backtracking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from kneo.spec.rules.automaton import MANY, Automaton, Budget, Ways

Node = TypeVar("Node")
Pair = tuple[int, int]


def ambiguous_loop(automaton: Automaton, budget: Budget) -> bool:
    """Tell whether some state can come back to itself over one text in two ways.

    Two copies of the automaton read together. They do so in two ways when they part and meet again: when a round of
    the pairs passes both through one state and through two different ones.

    Raises:
        TooLarge: the budget is spent.
    """
    loops = _loops(automaton)
    if any(count >= MANY for ways in loops.values() for count in ways.values()):
        return True

    def together(pair: Pair) -> Iterator[Pair]:
        for first in loops[pair[0]]:
            for second in loops[pair[1]]:
                budget.spend()
                if automaton.reads[first] & automaton.reads[second]:
                    yield (first, second) if first <= second else (second, first)

    for pairs in components([(state, state) for state in loops], together):
        met = [one == two for one, two in pairs]
        if any(met) and not all(met):
            return True
    return False


def _loops(automaton: Automaton) -> dict[int, Ways]:
    """Return the states that can come back to themselves, with the ways that stay within such a round."""
    kept: dict[int, Ways] = {}
    ways = automaton.ways
    for members in components(range(len(ways)), lambda state: ways[state]):
        if len(members) > 1 or members[0] in ways[members[0]]:
            inside = set(members)
            for state in members:
                kept[state] = {target: count for target, count in ways[state].items() if target in inside}
    return kept


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
