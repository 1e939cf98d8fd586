"""Reader of JSON from outside: a text that every reader understands in the same way, or an error.

Readers disagree about a member that is written twice, about NaN and numbers beyond those of a double, and about halves of
characters. What a person approves would depend on the reader.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

MAX_DEPTH = 200
"""Levels of lists and objects."""

_MAX_NUMBER_CHARS = 400
"""Enough for any double in full."""

STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""One text. The possessive quantifiers and the optional closing quote keep it linear on any input."""

_NOT_BRACKETS = re.compile(r"[^\[\]{}]++")


class AmbiguousJson(json.JSONDecodeError):
    """JSON by its grammar that readers understand differently."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "", 0)


class RepeatedMember(AmbiguousJson):
    """An object with two members of one name."""


def parse_json(data: bytes | str) -> object:
    """Parse JSON: UTF-8, no member twice, finite numbers, whole characters, 200 levels at most.

    Raises:
        JSONDecodeError: it is not JSON.
        AmbiguousJson: it is JSON that readers understand differently, or is nested too deep.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"The byte {error.start} is not UTF-8"
        raise json.JSONDecodeError(msg, "", 0) from error
    if is_deeper(text, MAX_DEPTH):
        msg = f"Lists and objects are nested more than {MAX_DEPTH} deep."
        raise AmbiguousJson(msg)
    value = _DECODER.decode(text)
    # A decoded text has half a character only where an escape states one.
    if isinstance(data, str) or "\\u" in text:
        _check_characters(value)
    return value


def is_deeper(text: str, levels: int) -> bool:
    """Return whether lists and objects are nested deeper, without recursion."""
    if text.count("[") + text.count("{") <= levels:
        return False
    depth = 0
    for bracket in _NOT_BRACKETS.sub("", STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > levels:
            return True
    return False


def make_decoder(parse_int: Callable[[str], int]) -> json.JSONDecoder:
    """Return a decoder that refuses ambiguous JSON; the depth is checked before.

    Args:
        parse_int: Returns a whole number by its digits.
    """
    return json.JSONDecoder(object_pairs_hook=_pairs, parse_int=parse_int, parse_float=_float, parse_constant=_constant)


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        message = f"The key {twice[:60]!r} is written twice."
        raise RepeatedMember(message)
    return value


def _integer(text: str) -> int:
    if len(text) > _MAX_NUMBER_CHARS:
        message = f"The number {text[:30]} has {len(text)} digits; at most {_MAX_NUMBER_CHARS} are accepted."
        raise AmbiguousJson(message)
    return int(text)


def _float(text: str) -> float:
    if len(text) > _MAX_NUMBER_CHARS or not math.isfinite(number := float(text)):
        message = f"The number {text[:30]} is too large to be stored."
        raise AmbiguousJson(message)
    return number


def _constant(text: str) -> float:
    message = f"{text} is not a JSON number."
    raise AmbiguousJson(message)


def _check_characters(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        msg = "A text has half a character (a surrogate without its other half)."
        raise AmbiguousJson(msg) from error


_DECODER = make_decoder(_integer)
