"""The automaton of a regular expression, with the number of ways it can go from one character to the next.

States are the places of the pattern that read a character (Glushkov's construction). A backtracking engine tries every
way, so two ways over the same characters matter even where they read the same language: the numbers say one or many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from re import _parser  # type: ignore[attr-defined] # the only description of what the engine will do

from kneo.spec.rules.charsets import Alphabet, charset

MAX_STATES = 1_000
MAX_EDGES = 20_000
MAX_UNROLLED = 8
"""Optional repetitions that are written out; more are treated as any number of them."""

MANY = 2

_MAX_REPEAT = int(_parser.MAXREPEAT)
_READS_NOTHING = frozenset({"AT", "FAILURE", "SUCCESS"})

Item = tuple[object, object]
Ways = dict[int, int]


class TooLarge(Exception):
    """The pattern, or the search through it, is larger than what is looked at."""


class Budget:
    """Steps that all patterns of one spec may cost together."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def spend(self, steps: int = 1) -> None:
        """Count steps.

        Raises:
            TooLarge: there are none left.
        """
        self._left -= steps
        if self._left < 0:
            raise TooLarge


@dataclass(slots=True)
class Automaton:
    """States by number, the characters each reads as a bit set, and the ways between them."""

    reads: list[int] = field(default_factory=list)
    ways: list[Ways] = field(default_factory=list)
    edges: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a pattern: in how many ways it reads nothing, where it can begin, and where it can end."""

    empty: int
    first: Ways
    last: Ways


_NOTHING = _Part(1, {}, {})
_NEVER = _Part(0, {}, {})


def compile_automaton(pattern: str, flags: int, budget: Budget) -> Automaton:
    """Build the automaton of a pattern.

    Raises:
        re.error: the pattern is none.
        TooLarge: it has too many states or edges, or the budget is spent.
    """
    tree = _parser.parse(pattern, flags)
    builder = _Builder(Alphabet.of(tree, ignore_case=bool(tree.state.flags & re.IGNORECASE)), budget)
    builder.sequence(_items(tree))
    return builder.automaton


def _items(tree: object) -> list[Item]:
    if not isinstance(tree, _parser.SubPattern):
        return []  # the missing half of a conditional group
    return [item for item in tree.data if isinstance(item, tuple) and len(item) == 2]


class _Builder:
    def __init__(self, alphabet: Alphabet, budget: Budget) -> None:
        self.automaton = Automaton()
        self._alphabet = alphabet
        self._budget = budget
        self._sets: dict[str, int] = {}

    def sequence(self, items: Sequence[Item]) -> _Part:
        part = _NOTHING
        for item in items:
            part = self._then(part, self._item(item))
        return part

    def _item(self, item: Item) -> _Part:
        operation, argument = str(item[0]), item[1]
        part = _NOTHING  # anchors and such read nothing
        match operation, argument:
            case "BRANCH", (_, list(branches)):
                part = self._either(self.sequence(_items(branch)) for branch in branches)
            case "SUBPATTERN", (_, _, _, body):
                part = self.sequence(_items(body))
            case (("MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT"), (int(low), int(high), body)):
                part = self._repeat(low, high, body)
            case "ATOMIC_GROUP", body:
                part = self.sequence(_items(body))
            case (("ASSERT" | "ASSERT_NOT"), (_, body)):
                self.sequence(_items(body))  # reads ahead or behind on its own; its loops count all the same
            case "GROUPREF", _:
                part = self._star(self._state(self._alphabet.everything))
            case "GROUPREF_EXISTS", (_, yes, no):
                part = self._either(self.sequence(_items(body)) for body in (yes, no))
            case _ if operation not in _READS_NOTHING:
                part = self._state(self._charset(operation, argument))
        return part

    def _charset(self, operation: str, argument: object) -> int:
        key = f"{operation} {argument}"  # the same set stands in a pattern many times once repetitions are written out
        if key not in self._sets:
            self._sets[key] = charset(operation, argument, self._alphabet)
        return self._sets[key]

    def _state(self, reads: int) -> _Part:
        number = len(self.automaton.reads)
        if number >= MAX_STATES:
            raise TooLarge
        self.automaton.reads.append(reads)
        self.automaton.ways.append({})
        return _Part(0, {number: 1}, {number: 1})

    def _connect(self, last: Ways, first: Ways, factor: int = 1) -> None:
        self._budget.spend(len(last) * len(first))
        for source, before in last.items():
            ways = self.automaton.ways[source]
            for target, after in first.items():
                self.automaton.edges += target not in ways
                ways[target] = min(MANY, ways.get(target, 0) + before * after * factor)
        if self.automaton.edges > MAX_EDGES:
            raise TooLarge

    def _then(self, one: _Part, two: _Part) -> _Part:
        self._connect(one.last, two.first)
        return _Part(
            min(MANY, one.empty * two.empty),
            _sum(one.first, _times(two.first, one.empty)),
            _sum(two.last, _times(one.last, two.empty)),
        )

    def _either(self, parts: Iterator[_Part]) -> _Part:
        whole = _NEVER
        for part in parts:
            whole = _Part(
                min(MANY, whole.empty + part.empty), _sum(whole.first, part.first), _sum(whole.last, part.last)
            )
        return whole

    def _optional(self, part: _Part) -> _Part:
        return _Part(min(MANY, part.empty + 1), part.first, part.last)

    def _star(self, part: _Part, *, counted: bool = False) -> _Part:
        # A counted repetition may leave any of its rounds empty; an endless one stops at the first empty round.
        self._connect(part.last, part.first, MANY if counted and part.empty else 1)
        return _Part(min(MANY, part.empty + 1), part.first, _times(part.last, 1 + part.empty))

    def _repeat(self, low: int, high: int, body: object) -> _Part:
        items = _items(body)
        if high > MAX_UNROLLED and not _fixed_width(body):
            # Rounds of different lengths can share a text in more ways than it has characters.
            endless = high >= _MAX_REPEAT
            round_ = self.sequence(items)
            star = self._star(round_, counted=not endless)
            # At least one round: nothing is read in no way, or in several, since an empty round may be tried again.
            return replace(star, empty=MANY if round_.empty else 0) if low else star
        whole = _NOTHING
        for _ in range(low):
            whole = self._then(whole, self.sequence(items))
        if high - low > MAX_UNROLLED:
            return self._then(whole, self._star(self.sequence(items)))
        rest = _NOTHING
        for _ in range(high - low):
            rest = self._optional(self._then(self.sequence(items), rest))
        return self._then(whole, rest)


def _fixed_width(body: object) -> bool:
    shortest, longest = body.getwidth() if isinstance(body, _parser.SubPattern) else (0, 1)
    return bool(shortest == longest > 0)


def _sum(one: Ways, two: Ways) -> Ways:
    total = dict(one)
    for state, ways in two.items():
        total[state] = min(MANY, total.get(state, 0) + ways)
    return total


def _times(ways: Ways, factor: int) -> Ways:
    return {} if factor == 0 else {state: min(MANY, count * factor) for state, count in ways.items()}
