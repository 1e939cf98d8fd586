"""Which characters the places of a pattern read, as bit sets over the few kinds of characters it tells apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from re import _parser  # type: ignore[attr-defined] # the only description of what the engine will do

_LAST = 0x10FFFF
_SAMPLES = "\t\n\r !\"#%',-./0123456789:;<=>@AZ[\\]^_`az{|}~\x00\x7f\xa0éЖ漢٣\u2028"
"""Characters of every category, so that any two categories that overlap do so here."""

_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda c: c.isalnum() or c == "_",
}


@dataclass(frozen=True, slots=True)
class Alphabet:
    """One representative for each kind of character that a pattern tells apart."""

    letters: tuple[str, ...]
    ignore_case: bool

    @classmethod
    def of(cls, tree: object, *, ignore_case: bool) -> Alphabet:
        """Find the kinds of characters a parsed pattern tells apart."""
        codes = {ord(sample) for sample in _SAMPLES}
        for code in _codes(tree):
            codes.update((max(0, code - 1), code, min(_LAST, code + 1)))
        letters = {chr(code) for code in codes}
        if ignore_case:
            letters |= {letter.swapcase()[:1] for letter in letters}
        return cls(tuple(sorted(letters)), ignore_case)

    @property
    def everything(self) -> int:
        """The set of all letters."""
        return (1 << len(self.letters)) - 1

    def where(self, reads: Callable[[str], bool]) -> int:
        """Return the set of letters for which something holds, in any case where case does not count."""
        chosen = 0
        for index, letter in enumerate(self.letters):
            if reads(letter) or (self.ignore_case and (reads(letter.lower()[:1]) or reads(letter.upper()[:1]))):
                chosen |= 1 << index
        return chosen


def charset(operation: str, argument: object, alphabet: Alphabet) -> int:
    """Return the set that one place of a parsed pattern reads; what is unknown reads everything."""
    match operation, argument:
        case (("LITERAL" | "NOT_LITERAL"), int()):
            literal = chr(argument)
            chosen = alphabet.where(lambda letter: letter == literal)
        case "RANGE", (int(low), int(high)):
            chosen = alphabet.where(lambda letter: low <= ord(letter) <= high)
        case "CATEGORY", _:
            return _category(str(argument), alphabet)
        case "IN", list():
            return _union(argument, alphabet)
        case _:
            return alphabet.everything
    return alphabet.everything & ~chosen if operation == "NOT_LITERAL" else chosen


def _category(name: str, alphabet: Alphabet) -> int:
    known = _CATEGORIES.get(name.replace("_NOT_", "_"))
    if known is None:
        return alphabet.everything
    chosen = alphabet.where(known)
    return alphabet.everything & ~chosen if "_NOT_" in name else chosen


def _union(members: Iterable[object], alphabet: Alphabet) -> int:
    chosen, negated = 0, False
    for member in members:
        match member:
            case (operation, _) if str(operation) == "NEGATE":
                negated = True
            case (operation, argument):
                chosen |= charset(str(operation), argument, alphabet)
            case _:
                pass
    return alphabet.everything & ~chosen if negated else chosen


def _codes(tree: object) -> Iterator[int]:
    """Find every character that a parsed pattern names; other numbers in it only add harmless kinds."""
    if isinstance(tree, int):
        if not isinstance(tree, bool) and 0 <= tree <= _LAST:
            yield int(tree)
    elif isinstance(tree, _parser.SubPattern | list | tuple):
        for part in tree:
            yield from _codes(part)
