"""The lines of a changed value, shortened around the first difference with the count of what is left out; and bounded comments."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest

from kneo.names import plain, visible

MAX_LINES = 40  # lines of a changed text that are shown
MAX_WIDTH = 200  # characters of one of them
MAX_COMPARED = 2_000  # changed lines that are compared with each other; more are shown as one block
CONTEXT = 40  # characters that are shown before and after the difference of a long line

NOT_SHOWN = "(may be a secret and is not shown)"

Rows = tuple[str, ...]
"""Lines that begin with ``-`` where they are removed, ``+`` where they are added, a space where they stay, and ``@@``."""


def text_rows(before: str, after: str) -> Rows:
    """Return all removed and added lines of a text, with one line of context; different lines look different."""
    old, new = _lines(before), _lines(after)
    rows: list[str] = []
    for group in _groups(old, new):
        if old and new:
            first, last = group[0], group[-1]
            ranges = (first[1] + 1, last[2] - first[1], first[3] + 1, last[4] - first[3])
            rows.append("@@ -{},{} +{},{} @@".format(*ranges))
        for kind, old_from, old_to, new_from, new_to in group:
            if kind == "equal":
                rows += (f" {visible(line)}" for line in old[old_from:old_to])
            else:
                rows += _block(old[old_from:old_to], new[new_from:new_to])
    return tuple(rows)


def _lines(text: str) -> list[str]:
    # Not splitlines: an end of line that is not \n is a character of the text, and is shown.
    return text.split("\n") if text else []


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the beginning that two sequences share."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


_Opcode = tuple[str, int, int, int, int]


def _groups(old: Sequence[str], new: Sequence[str]) -> Iterator[Sequence[_Opcode]]:
    """Yield the changes with a line of context; a large part is not compared by lines, but is one change."""
    start = _shared(old, new)
    end = _shared(old[start:][::-1], new[start:][::-1])
    old_end, new_end = len(old) - end, len(new) - end
    if max(old_end - start, new_end - start) <= MAX_COMPARED:
        low, high = max(start - 1, 0), 1 if end else 0
        matcher = difflib.SequenceMatcher(None, old[low : old_end + high], new[low : new_end + high])
        for group in matcher.get_grouped_opcodes(1):
            yield [(kind, a + low, b + low, c + low, d + low) for kind, a, b, c, d in group]
        return
    before: list[_Opcode] = [("equal", start - 1, start, start - 1, start)] if start else []
    after: list[_Opcode] = [("equal", old_end, old_end + 1, new_end, new_end + 1)] if end else []
    yield [*before, ("replace", start, old_end, start, new_end), *after]


def _block(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    looks = {_look(line) for line in old} & {_look(line) for line in new}
    pairs = list(zip_longest(old, new))
    alike = [bool(one and other and _is_alike(one, other)) for one, other in pairs]
    for sign, lines in (("-", old), ("+", new)):
        for number, line in enumerate(lines):
            yield f"{sign}{_explicit(line) if alike[number] or _look(line) in looks else visible(line)}"


def _look(line: str) -> str:
    """Return what a reader sees of a line: compatible characters, widths of spaces and ends of lines look the same."""
    if line.isascii() and line.isprintable():
        return line.rstrip()
    return unicodedata.normalize("NFKC", visible(line)).expandtabs().rstrip()


def _is_alike(one: str, other: str) -> bool:
    """Return whether two different lines look the same: also where they differ in letters of different scripts alone."""
    return _look(one) == _look(other) or (
        len(one) == len(other)
        and not (one.isascii() and other.isascii())
        and all(
            a == b or (a.isalpha() and b.isalpha() and _script(a) != _script(b))
            for a, b in zip(one, other, strict=True)
        )
    )


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


_UNCLEAR = re.compile(r"[^\x20-\x7e]| +$")


def _explicit(line: str) -> str:
    """Return a line with the code point of every character that may look like another one, or like none."""
    return _UNCLEAR.sub(lambda found: "".join(f"⟨U+{ord(letter):04X}⟩" for letter in found[0]), line)


def look_alike(one: str, other: str) -> bool:
    """Return whether two different texts of one line look the same, so that a sentence cannot show their difference."""
    return one != other and _is_alike(one, other)


# ---- shortened ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shortened:
    """The lines of a change as they are shown.

    Attributes:
        rows: The lines.
        lines: Lines that are left out.
        chars: Characters that are left out of the lines that are shown.
        hides: Whether a part of the change itself is left out, and not only what stays the same.
    """

    rows: Rows
    lines: int = 0
    chars: int = 0
    hides: bool = False

    def with_note(self, command: str) -> Rows:
        """Return the lines, and a note about what is left out and the command that shows it."""
        left_out = (count(self.lines, "more line"), count(self.chars, "more character"))
        parts = [text for text, number in zip(left_out, (self.lines, self.chars), strict=True) if number]
        return (*self.rows, f"… {' and '.join(parts)}: {command}") if parts else self.rows


def count(number: int, noun: str) -> str:
    """Return a number of things: ``1 change``, ``2,000 changes``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shorten(rows: Rows) -> Shortened:
    """Shorten the lines of a change: of each block of removed and added lines both are shown."""
    shown: list[str] = []
    chars, hides = 0, False
    for is_changed, block in groupby(rows, key=lambda row: row[:1] in {"-", "+"}):
        room = MAX_LINES - len(shown)
        lines = list(block)
        if room <= 0:
            hides = hides or is_changed
        elif not is_changed:
            for line in lines[:room]:
                shown.append(_cut(line, MAX_WIDTH))
                chars += max(0, len(line) - MAX_WIDTH)
        else:
            old, new = ([line for line in lines if line[0] == sign] for sign in "-+")
            removed = min(len(old), max(room // 2, room - len(new)))
            added = min(len(new), room - removed)
            hides = hides or removed < len(old) or added < len(new)
            pairs = [_pair(one, other) for one, other in zip_longest(old[:room], new[:room], fillvalue="")]
            for side, number in ((0, removed), (1, added)):
                for pair in pairs[:number]:
                    shown.append(pair[side].rows[0])
                    chars += pair[side].chars
                    hides = hides or pair[side].hides
    return Shortened(tuple(shown), len(rows) - len(shown), chars, hides)


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _pair(old: str, new: str) -> tuple[Shortened, Shortened]:
    """Shorten a removed and an added line around their difference; one without the other from its end."""
    if max(len(old), len(new)) <= MAX_WIDTH:
        return Shortened((old,)), Shortened((new,))
    one, other = old[1:], new[1:]
    same = _shared(one, other)
    ending = _shared(one[same:][::-1], other[same:][::-1])
    return _window(old[:1], one, same, ending), _window(new[:1], other, same, ending)


def _window(sign: str, text: str, same: int, ending: int) -> Shortened:
    begin = same - CONTEXT if same > 2 * CONTEXT else 0
    end = len(text) - ending
    most = begin + MAX_WIDTH - 2 - len(sign)
    until = min(end + CONTEXT if ending > 2 * CONTEXT else len(text), most)
    row = f"{sign}{'…' if begin else ''}{text[begin:until]}{'…' if until < len(text) else ''}"
    return Shortened((row,), chars=begin + len(text) - until, hides=until < end)


# ---- values -------------------------------------------------------------------------------------------------------


def value_lines(value: object, indent: str = "") -> Iterator[str]:
    """Yield the lines of a value with parts: a key and its value on a line, a text by its own lines."""
    items: Sequence[tuple[str, object]] = ()
    if isinstance(value, Mapping):
        items = [(f"{key}:", inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        items = [("-", inner) for inner in value]
    for key, inner in items:
        if isinstance(inner, str) and "\n" in inner:
            yield f"{indent}{key} |"
            yield from (f"{indent}  {line}" for line in inner.split("\n"))
        elif isinstance(inner, Mapping | list | tuple) and inner:
            yield f"{indent}{key}"
            yield from value_lines(inner, indent + "  ")
        else:
            yield f"{indent}{key} {json.dumps(inner, ensure_ascii=False)}"


def as_text(value: object) -> str:
    """Return a text, a value with parts as lines, any other value as JSON, nothing for an absent one."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list | tuple):
        return "\n".join(value_lines(value)) or json.dumps(value)
    return json.dumps(value) if value is None or isinstance(value, bool | int | float) else ""


def without_secrets(value: object, keys: Sequence[str]) -> object:
    """Return a value of a spec without what may be a secret: settings of models, and variables and headers of servers."""
    if isinstance(value, dict):
        hides = keys[-1:] == ("extra",) or (keys[:1] == ("mcp_servers",) and keys[2:] in {("env",), ("headers",)})
        return {
            key: NOT_SHOWN
            if hides and key != "base_url" and not key.endswith("_ref")
            else without_secrets(inner, (*keys, key))
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(inner, (*keys, str(number))) for number, inner in enumerate(value)]
    return value


MAX_COMMENT = 65_536
"""Characters of a comment on GitHub."""

_NOTE_CHARS = 400
"""Characters that are kept for the note about what is left out, without its command."""

_FENCE = re.compile(r" *(`{3,})")


def bounded_comment(lines: Iterable[str], command: str) -> str:
    """Return the lines of a comment as one text; what is more than a comment may have is counted.

    Args:
        lines: Lines of Markdown, of which some have several lines.
        command: The command that shows all.
    """
    text = plain("\n".join(lines))
    if len(text) <= MAX_COMMENT:
        return text
    whole, kept = text.split("\n"), list[str]()
    room = MAX_COMMENT - _NOTE_CHARS - len(command)
    for line in whole:
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    left = whole[len(kept) :]
    left_out = f"{count(len(left), 'more line')} with {count(sum(map(len, left)), 'character')}"
    return "\n".join((*kept, *_ends(kept), "", f"‼ … {left_out}: `{command}`"))


def _ends(lines: Iterable[str]) -> Iterable[str]:
    """Yield the ends of the fence and of the folded part that lines leave open."""
    fence, folded = "", 0
    for line in lines:
        if fence:
            fence = "" if line.strip() == fence else fence
        elif found := _FENCE.match(line):
            fence = found[1]
        else:
            folded += line.count("<details") - line.count("</details>")
    if fence:
        yield fence
    yield from ["</details>"] * folded
