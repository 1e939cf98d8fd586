"""Regular expressions that specs, schemas and answers bring: compiled and matched by RE2, in linear time.

The standard library's engine backtracks: some patterns take exponential time on some texts while it holds the
interpreter lock, so one answer stops the whole process. RE2 never backtracks. What it cannot express (look-arounds, back
references, atomic groups) is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_PATTERN = 2_000
"""Characters of a pattern. A longer one is a list of words, which keywords and enum express better."""

MAX_PROGRAM = 10_000
"""Instructions of a compiled pattern. Matching takes at most this many steps for each byte of a text."""

MAX_WORK = 100_000_000
"""Instructions times bytes that one match may cost; about half a second."""

MAX_REPLACE_WORK = 10 * MAX_WORK
"""Instructions times bytes that the replacement of all matches in one text may cost."""

_MAX_MEMORY = 1 << 20  # bytes of one compiled pattern with its cache

_UNSUPPORTED = ("invalid perl operator", "invalid escape sequence", "invalid repetition size", "pattern too large")
"""How RE2 begins to say that it cannot do what other engines can; any other complaint is about a mistake."""

_OTHER_SPELLINGS = re.compile(r"\\(?:Z|u([0-9a-fA-F]{4})|.)", re.DOTALL)
"""Escapes of Python and of JavaScript that RE2 writes differently."""


class _Match(Protocol):
    def start(self) -> int: ...

    def end(self) -> int: ...


class _Compiled(Protocol):
    @property
    def programsize(self) -> int: ...

    def search(self, text: str) -> _Match | None: ...

    def finditer(self, text: str) -> Iterator[_Match]: ...


class PatternInvalid(ValueError):
    """A pattern cannot be used.

    Attributes:
        reason: A sentence.
        unsupported: Whether it may be a regular expression all the same, of a kind that cannot be matched in linear time.
    """

    def __init__(self, reason: str, *, unsupported: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unsupported = unsupported


class TextUnmatchable(ValueError):
    """A text is too long for a pattern, or not valid Unicode: it neither matches nor does it not."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled regular expression."""

    compiled: _Compiled
    size: int

    def search(self, text: str) -> bool:
        """Return whether the pattern matches any part of a text.

        Raises:
            TextUnmatchable: the text cannot be judged.
        """
        if self.cost(text) > MAX_WORK:
            msg = f"has {len(text)} characters, too many for its pattern"
            raise TextUnmatchable(msg)
        try:
            return self.compiled.search(text) is not None
        except UnicodeEncodeError as error:
            msg = "is not valid Unicode"
            raise TextUnmatchable(msg) from error

    def replace(self, text: str, replacement: str) -> str:
        """Return a text with every match replaced.

        Each match is found in linear time, all of them together may not be: their work is bounded.

        Raises:
            TextUnmatchable: the text cannot be judged.
        """
        if not self.search(text):
            return text
        pieces, end, work = [], 0, 0
        for match in self.compiled.finditer(text):
            pieces += [text[end : match.start()], replacement]
            end = match.end()
            work += self.size * (len(text) - end)
            if work > MAX_REPLACE_WORK:
                msg = f"has {len(text)} characters, with too many matches of its pattern"
                raise TextUnmatchable(msg)
        return "".join((*pieces, text[end:]))

    def cost(self, text: str) -> int:
        """Return the steps that matching a text takes at most."""
        return self.size * len(text)


@lru_cache(maxsize=128)
def compile_pattern(text: str) -> Pattern:
    """Compile a regular expression.

    Raises:
        PatternInvalid: it is none, it is too large, or it cannot be matched in linear time.
    """
    if len(text) > MAX_PATTERN:
        msg = f"The pattern has {len(text)} characters; at most {MAX_PATTERN} are allowed."
        raise PatternInvalid(msg, unsupported=True)
    compiled = _compile(_OTHER_SPELLINGS.sub(_respell, text))
    if compiled.programsize > MAX_PROGRAM:
        msg = f"The pattern compiles to {compiled.programsize} instructions; at most {MAX_PROGRAM} are allowed."
        raise PatternInvalid(msg, unsupported=True)
    return Pattern(compiled, compiled.programsize)


def find_flaw(text: str) -> PatternInvalid | None:
    """Return why a pattern cannot be used, or None."""
    try:
        compile_pattern(text)
    except PatternInvalid as flaw:
        return flaw
    return None


def _compile(text: str) -> _Compiled:
    compiler, failure = _engine()
    try:
        return compiler(text)
    except UnicodeEncodeError as error:
        msg = "The pattern is not valid Unicode."
        raise PatternInvalid(msg) from error
    except failure as error:
        said = error.args[0] if error.args else b""
        reason = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        if reason.startswith(_UNSUPPORTED):
            msg = f"The pattern cannot be matched in linear time: {reason}."
            raise PatternInvalid(msg, unsupported=True) from error
        msg = f"The pattern is no regular expression: {reason}."
        raise PatternInvalid(msg) from error


@cache
def _engine() -> tuple[Callable[[str], _Compiled], type[Exception]]:
    # Imported for the first pattern: most commands have none.
    import re2  # type: ignore[import-untyped]

    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MAX_MEMORY
    return lambda text: re2.compile(text, options), re2.error


def _respell(escape: re.Match[str]) -> str:
    if escape[0] == r"\Z":
        return r"\z"
    return rf"\x{{{escape[1]}}}" if escape[1] else escape[0]
