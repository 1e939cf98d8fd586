"""YAML as far as people need it to declare things, and no further: its reader and its writer.

Scalars follow the YAML 1.2 core schema, because it has no surprises: only ``true`` and ``false`` (and their two other
capitalisations) are booleans, so ``no``, ``off`` and ``yes`` stay words; dates stay text; ``12:30`` stays text. Where
1.1 and 1.2 readers get different numbers out of the same text (``010``), we refuse and ask for a clearer spelling.

Values are built from the parser's events rather than by its constructor, for three reasons: the event stream is
produced iteratively, so nesting cannot exhaust the stack; bounds are checked before anything is built; and
duplicate keys, which the stock constructor silently merges, are seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import yaml

from kneo.names import plain, replace_unseen
from kneo.spec.documents import Document, ReadLimits, SourceLocation, Unreadable

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MAY_BE_NUMBER = frozenset("-+.0123456789")
_MAX_NUMBER_CHARS = 400  # long enough for any double written out in full


LineColumn: TypeAlias = tuple[int, int]
"""Line and column, counted from 1."""


def _line_column(event: yaml.Event) -> LineColumn:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


@dataclass(slots=True)
class _Open:
    """A list or map that is still being read."""

    value: list[object] | dict[str, object]
    line: int
    column: int
    first_node: int
    anchor: str | None
    children: dict[str | int, SourceLocation] = field(default_factory=dict)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    key: str | None = None


class _Builder:
    """Turns one document's events into a value and its locations."""

    def __init__(self, file: str, limits: ReadLimits) -> None:
        self._file = file
        self._limits = limits
        self._open: list[_Open] = []
        self._nodes = 0
        self._documents = 0
        self._anchors: dict[str, tuple[object, SourceLocation, int]] = {}
        self.value: object = None
        self.location = SourceLocation(1, 1)

    def feed(self, event: yaml.Event) -> None:
        """Take one event of the parser's stream.

        Raises:
            Unreadable: the event shows something that is not read, or a limit was reached.
        """
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._start(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._end()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._refuse("A second document begins here; a file holds one.", _line_column(event))

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        position = _line_column(event)
        self._admit(event, position)
        if "\0" in event.value:
            raise self._refuse("A NUL character stands in this text.", position)
        parent = self._open[-1] if self._open else None
        if parent is not None and parent.key is None and isinstance(parent.value, dict):
            self._key(parent, parent.value, event)
            return
        value = self._resolve(event.value, position) if event.implicit[0] else event.value
        location = SourceLocation(*position)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, location, 1)
        self._add(value, location)

    def _key(self, parent: _Open, value: dict[str, object], event: yaml.ScalarEvent) -> None:
        key, position = event.value, _line_column(event)
        if key == "<<" and event.implicit[0]:
            hint = "Write the keys out, or use an overlay."
            raise self._refuse("Merge keys are not read.", position, hint)
        if key in value:
            first = parent.keys[key][0]
            raise self._refuse(f"The key {_short(key)} is written twice; the first is on line {first}.", position)
        parent.key = key
        parent.keys[key] = position

    def _start(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        position = _line_column(event)
        self._admit(event, position)
        if len(self._open) >= self._limits.max_depth:
            raise self._refuse(f"Lists and maps are nested more than {self._limits.max_depth} deep.", position)
        if self._open and self._open[-1].key is None and isinstance(self._open[-1].value, dict):
            raise self._refuse("A key is a list or a map; keys are text.", position)
        value: list[object] | dict[str, object] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._open.append(_Open(value, *position, self._nodes, event.anchor))

    def _end(self) -> None:
        done = self._open.pop()
        location = SourceLocation(done.line, done.column, done.children, done.keys)
        if done.anchor is not None:
            self._anchors[done.anchor] = (done.value, location, self._nodes - done.first_node + 1)
        self._add(done.value, location)

    def _alias(self, event: yaml.AliasEvent) -> None:
        position = _line_column(event)
        if not self._limits.aliases:
            raise self._refuse("Aliases are not read.", position, "Write the value out where it is used.")
        if self._open and self._open[-1].key is None and isinstance(self._open[-1].value, dict):
            raise self._refuse("A key is an alias; keys are text.", position)
        known = self._anchors.get(event.anchor or "")
        if known is None:
            raise self._refuse(f"No anchor named {_short(event.anchor or '')} stands before this alias.", position)
        value, location, nodes = known
        self._count(nodes, position)
        self._add(value, SourceLocation(*position, location.children, location.keys))

    def _add(self, value: object, location: SourceLocation) -> None:
        if not self._open:
            self.value, self.location = value, location
            return
        parent = self._open[-1]
        if isinstance(parent.value, list):
            parent.children[len(parent.value)] = location
            parent.value.append(value)
        elif parent.key is not None:
            parent.children[parent.key] = location
            parent.value[parent.key] = value
            parent.key = None

    def _admit(
        self, event: yaml.ScalarEvent | yaml.MappingStartEvent | yaml.SequenceStartEvent, position: LineColumn
    ) -> None:
        self._count(1, position)
        if event.tag is not None:
            raise self._refuse(f"The tag {_short(event.tag)} is not read; values have their natural type.", position)
        if event.anchor is not None and not self._limits.aliases:
            raise self._refuse("Anchors are not read.", position, "Write the value out where it is used.")

    def _count(self, nodes: int, position: LineColumn) -> None:
        self._nodes += nodes
        if self._nodes > self._limits.max_nodes:
            raise self._refuse(f"The file holds more than {self._limits.max_nodes} keys and values.", position)

    def _resolve(self, text: str, position: LineColumn) -> object:
        if text in _NULL:
            return None
        if text in _BOOLEAN:
            return _BOOLEAN[text]
        return self._number(text, position) if text[0] in _MAY_BE_NUMBER else text

    def _number(self, text: str, position: LineColumn) -> object:
        if _NOT_FINITE.fullmatch(text):
            raise self._refuse(f"{_short(text)} is not a number that can be stored.", position)
        is_number = _INTEGER.fullmatch(text) or _BASED.fullmatch(text) or _FLOAT.fullmatch(text)
        if not is_number:
            return text
        if len(text) > _MAX_NUMBER_CHARS:
            raise self._refuse("A number has too many digits; put it in quotes to keep it as text.", position)
        number = (
            self._integer(text, position) if not _FLOAT.fullmatch(text) or _INTEGER.fullmatch(text) else float(text)
        )
        if abs(number) > self._limits.max_integer and (
            isinstance(number, int) or number in {float("inf"), float("-inf")}
        ):
            raise self._refuse(f"The number {_short(text)} is too large to be exact; put it in quotes.", position)
        return number

    def _integer(self, text: str, position: LineColumn) -> int:
        if _BASED.fullmatch(text):
            return int(text, 0)
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0":
            hint = "Drop the zero, or put it in quotes to keep it as text."
            raise self._refuse(
                f"{_short(text)} begins with a zero, which not all readers take as decimal.", position, hint
            )
        return int(text)

    def _refuse(self, message: str, position: LineColumn, hint: str | None = None) -> Unreadable:
        return Unreadable(message, file=self._file, line=position[0], column=position[1], hint=hint)


def build_yaml(text: str, *, file: str, limits: ReadLimits) -> Document:
    """Read one YAML document from text that is known to be small enough.

    Raises:
        Unreadable: it is not YAML, goes beyond the subset we read, or exceeds a limit.
    """
    builder = _Builder(file, limits)
    try:
        for event in _events(text):
            builder.feed(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
        what = error.problem or error.context or "the text has no meaning"
        raise Unreadable(f"This is not YAML: {what}.", file=file, line=line, column=column) from error
    except yaml.YAMLError as error:  # the reader's complaints about characters carry an offset at most
        raise _unreadable_character(text, file) from error
    return Document(builder.value, file, text, lambda: builder.location)


def _events(text: str) -> Iterator[yaml.Event]:
    # The C parser is some ten times faster; the Python one reads the same language where libyaml is absent.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    events: Iterator[yaml.Event] = yaml.parse(text, Loader=loader)
    return events


# What YAML 1.1 section 5.1 calls printable; libyaml refuses everything else without saying where it stands.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _unreadable_character(text: str, file: str) -> Unreadable:
    found = _UNPRINTABLE.search(text)
    if found is None:
        return Unreadable("This is not YAML.", file=file)
    before = text[: found.start()]
    line = before.count("\n") + 1
    column = found.start() - before.rfind("\n")
    return Unreadable(f"The character U+{ord(found[0]):04X} is not allowed.", file=file, line=line, column=column)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


# Text that looks like a number to a YAML 1.2 reader but not to the dumper, which speaks 1.1 and would not quote it.
_NUMBER_LIKE = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?|0[ox][0-9a-fA-F]+")

_ESCAPED = re.compile("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""Line breaks that only some readers know, and what is not printable."""


class _Dumper(yaml.SafeDumper):
    """Writes shared parts out each time, texts of several lines as blocks, and number-like texts in quotes."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the reader takes no aliases at all
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=_style(value))


def _style(value: str) -> str | None:
    if _ESCAPED.search(value) or plain(value) != value:
        return '"'
    if _NUMBER_LIKE.fullmatch(value):
        return "'"
    return "|" if "\n" in value else None


_Dumper.add_representer(str, _text)


def write_yaml(value: object) -> str:
    """Spell a plain value as YAML, keys in their order."""
    written: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, indent=2)
    return replace_unseen(written, _escape)


def _escape(letter: str) -> str:
    # Valid because a text with such a character is in double quotes.
    return f"\\U{ord(letter):08x}"
