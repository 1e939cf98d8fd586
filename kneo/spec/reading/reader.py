"""Reader of YAML and JSON files: bounded, strict, and with positions.

The result for any bytes is a :class:`Document`, or an :class:`Unreadable` with file, line and column. The checks run in
this order: size, encoding, shape (depth and count), meaning.

The decoder of ``kneo.json_text`` reads JSON, since envelopes are read by the thousand. Checks around it refuse numbers that other readers
round, lone surrogates and deep nesting. Locations are computed on demand: :func:`locations`
is a second, slower walk over the tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache, partial
from typing import NamedTuple

from kneo.json_text import STRING, AmbiguousJson, is_deeper, make_decoder
from kneo.spec.documents import DEFAULT_LIMITS, Document, ReadLimits, SourceLocation, Unreadable
from kneo.spec.reading.yaml import build_yaml


def read(data: bytes, *, file: str, limits: ReadLimits = DEFAULT_LIMITS) -> Document:
    """Read a file by its name: ``.json`` as JSON, everything else as YAML.

    Raises:
        Unreadable: the bytes are not a document of this format.
    """
    reader = read_json if file.lower().endswith(".json") else read_yaml
    return reader(data, file=file, limits=limits)


def read_json(data: bytes, *, file: str, limits: ReadLimits = DEFAULT_LIMITS) -> Document:
    """Read JSON: no duplicate keys, no NaN, no integer that other readers would round.

    Raises:
        Unreadable: the bytes are not such a document, or exceed a limit.
    """
    text = _decode(data, file, limits)
    return Document(build_json(text, file=file, limits=limits), file, text, cache(partial(locations, text)))


def read_yaml(data: bytes, *, file: str, limits: ReadLimits = DEFAULT_LIMITS) -> Document:
    """Read one YAML document of plain maps, lists and scalars; an empty file is the value None.

    Raises:
        Unreadable: the bytes are not such a document, or exceed a limit.
    """
    return build_yaml(_decode(data, file, limits), file=file, limits=limits)


def _decode(data: bytes, file: str, limits: ReadLimits) -> str:
    if len(data) > limits.max_bytes:
        message = f"The file has {len(data)} bytes; at most {limits.max_bytes} are read."
        raise Unreadable(message, file=file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"The byte 0x{data[error.start]:02X} is not UTF-8."
        raise Unreadable(message, file=file, line=line, column=column) from error


# One token per match. The possessive quantifiers and the optional closing quote keep it linear on any input.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}:,]|[^\s"\[\]{}:,]++', re.DOTALL)
_MAX_NUMBER_CHARS = 400  # long enough for any double written out in full


def build_json(text: str, *, file: str, limits: ReadLimits) -> object:
    """Read JSON text that is known to be small enough.

    Raises:
        Unreadable: it is not JSON, is ambiguous, or exceeds a limit.
    """
    _check_shape(text, file, limits)
    try:
        value: object = _decoder(limits.max_integer).decode(text)
    except AmbiguousJson as error:
        line, column = _find_refused(text, limits.max_integer)
        raise Unreadable(error.msg, file=file, line=line, column=column) from error
    except json.JSONDecodeError as error:
        reason = f"This is not JSON: {error.msg[:1].lower()}{error.msg[1:]}."
        raise Unreadable(reason, file=file, line=error.lineno, column=error.colno) from error
    if ("\\u" in text) and (position := _find_unstorable(text)) is not None:
        message = "This text holds a NUL or half a surrogate pair, which cannot be stored."
        raise Unreadable(message, file=file, line=position[0], column=position[1])
    return value


def _check_shape(text: str, file: str, limits: ReadLimits) -> None:
    """Bound depth and count before the recursive parser sees the text."""
    if sum(map(STRING.sub("", text).count, ",:[{")) > limits.max_nodes:
        raise Unreadable(f"The file holds more than {limits.max_nodes} keys and values.", file=file)
    if is_deeper(text, limits.max_depth):
        line, column = _find_depth(text, limits.max_depth)
        message = f"Lists and objects are nested more than {limits.max_depth} deep."
        raise Unreadable(message, file=file, line=line, column=column)


def _find_depth(text: str, max_depth: int) -> tuple[int, int]:
    depth = 0
    for token in _tokens(text):
        depth += (token.text in "[{") - (token.text in "]}")
        if depth > max_depth:
            return token.line, token.column
    return 1, 1


def _integer(max_integer: int, text: str) -> int:
    if len(text) > _MAX_NUMBER_CHARS or abs(number := int(text)) > max_integer:
        message = f"The number {text[:30]} is too large to be exact; write it as text."
        raise AmbiguousJson(message)
    return number


@cache
def _decoder(max_integer: int) -> json.JSONDecoder:
    return make_decoder(partial(_integer, max_integer))


class _Token(NamedTuple):
    text: str
    line: int
    column: int
    is_key: bool


def _tokens(text: str) -> Iterator[_Token]:
    """Walk over text whose brackets match, without commas and colons."""
    in_object: list[bool] = []
    line, line_start, expect_key = 1, 0, False
    for match in _TOKEN.finditer(text):
        word, offset = match[0], match.start()
        while (newline := text.find("\n", line_start, offset)) >= 0:
            line += 1
            line_start = newline + 1
        if word == ",":
            expect_key = bool(in_object) and in_object[-1]
            continue
        if word == ":":
            continue
        yield _Token(word, line, offset - line_start + 1, expect_key and word[0] == '"')
        if word in "[{":
            in_object.append(word == "{")
        elif word in "]}" and in_object:
            in_object.pop()
        expect_key = word == "{"


def _find_refused(text: str, max_integer: int) -> tuple[int, int]:
    """Find the first duplicate key or number that the decoder's hooks refuse."""
    keys: list[set[str]] = []
    for token in _tokens(text):
        if token.text in "[{":
            keys.append(set())
        elif token.text in "]}":
            keys.pop()
        elif token.is_key:
            key = str(json.loads(token.text))
            if key in keys[-1]:
                return token.line, token.column
            keys[-1].add(key)
        elif token.text[0] != '"':
            try:
                _decoder(max_integer).decode(token.text)
            except json.JSONDecodeError:
                return token.line, token.column
    return 1, 1


def _find_unstorable(text: str) -> tuple[int, int] | None:
    for token in _tokens(text):
        if token.text[0] == '"' and "\\u" in token.text:
            value = str(json.loads(token.text))
            if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
                return token.line, token.column
    return None


def locations(text: str) -> SourceLocation:
    """Return the location of each part of well-formed JSON text."""
    root = SourceLocation(1, 1)
    stack: list[tuple[dict[str | int, SourceLocation], dict[str, tuple[int, int]]]] = []
    key: str | None = None  # the one whose value comes next
    for token in _tokens(text):
        if token.text in "]}":
            stack.pop()
        elif token.is_key:
            key = str(json.loads(token.text))
            stack[-1][1][key] = (token.line, token.column)
        else:
            children: dict[str | int, SourceLocation] = {}
            keys: dict[str, tuple[int, int]] = {}
            location = SourceLocation(token.line, token.column, children, keys)
            if stack:
                stack[-1][0][len(stack[-1][0]) if key is None else key] = location
            else:
                root = location
            key = None
            if token.text in "[{":
                stack.append((children, keys))
    return root
