"""Digests and canonical JSON.

A digest is always written ``sha256:<64 lower-case hex digits>``, so that the algorithm travels with the value. Whatever is compared,
looked up or agreed to is compared by a whole digest; names that people read have a ``DigestLabel``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from json import JSONEncoder
from typing import ClassVar, NewType, NoReturn

import rfc8785

from kneo.errors import Invalid

Digest = NewType("Digest", str)

_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
"""The integers of 64 bits, signed and unsigned, in which services have their ids."""

_encode = JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode

DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(data: bytes) -> Digest:
    """Return the digest of bytes."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def hash_text(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal, as tokens and keys are stored."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: object) -> bytes:
    """Return a JSON value in the canonical form of RFC 8785, and integers of 64 bits, for which it has no form, with all digits.

    For Kneo's own hashes only; signed bytes are verified as received and never serialised again.

    Raises:
        Invalid: the value has no canonical form (NaN, larger integers, lone surrogates, other types).
    """
    try:
        return (_encode(value) if _is_plain(value) else _written(value)).encode()
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        msg = f"This value cannot be written as canonical JSON: {error}."
        raise Invalid(msg) from error


def _is_plain(value: object) -> bool:
    """Return whether Python's own encoder, which is several times as fast, writes a value as RFC 8785 does.

    The two differ in floats that have an exponent or no fraction, and in the order of keys beyond ASCII.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is dict:
        for key, item in value.items():  # type: ignore[attr-defined]  # noqa: SIM110 - all() and a generator take twice as long
            if not (type(key) is str and key.isascii() and _is_plain(item)):
                return False
        return True
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    if kind is float:
        return not value.is_integer() and 1e-4 <= abs(value) < 1e16  # type: ignore[attr-defined,arg-type]  # beyond, exponents begin
    # A subclass of str is a member of an enumeration.
    return _MIN_INTEGER <= value <= _MAX_INTEGER if kind is int else isinstance(value, str)  # type: ignore[operator]


def _written(value: object) -> str:
    """Return the canonical form of a value that is not plain."""
    match value:
        case dict():
            items = sorted(value.items(), key=lambda item: _order(item[0]))
            return f"{{{','.join(f'{_encode(key)}:{_written(item)}' for key, item in items)}}}"
        case list() | tuple():
            return f"[{','.join(map(_written, value))}]"
        case _ if _is_plain(value):
            return _encode(value)
        case _:
            return rfc8785.dumps(value).decode()  # type: ignore[arg-type]  # it refuses what JSON does not have


def _order(key: object) -> bytes:
    if not isinstance(key, str):
        msg = f"a key of the type {type(key).__name__}"
        raise rfc8785.CanonicalizationError(msg)
    return key.encode("utf-16-be")


def find_uncanonical(value: object, max_depth: int) -> str | None:
    """Return why a value is no JSON value of bounded depth that has a canonical form; ``None`` where it is.

    Args:
        value: The value.
        max_depth: Lists and objects inside each other.
    """
    if is_deeper(value, max_depth):
        return f"it is nested more than {max_depth} deep"
    try:
        canonical_json(value)
    except Invalid as error:
        return error.message
    return None


def is_deeper(value: object, max_depth: int) -> bool:
    """Return whether lists and objects are inside each other more often than a limit, of a value however deep."""
    level = [value]
    for _ in range(max_depth):
        level = [part for each in level for part in _parts(each) if isinstance(part, Mapping | list | tuple)]
        if not level:
            return False
    return True


def _parts(value: object) -> Iterable[object]:
    match value:
        case Mapping():
            return value.values()
        case list() | tuple():
            return value
        case _:
            return ()


def digest_of_json(value: object) -> Digest:
    """Return the digest of a JSON value, independent of key order, spacing and number format."""
    return digest_of(canonical_json(value))


LABEL_CHARS = 8


class DigestLabel:
    """The first hex digits of a digest, for names that people read.

    Two values with the same label are found within a second. A label is therefore no identity: it is written into a name, and
    comparing it, or looking something up by it, raises ``TypeError``.
    """

    __slots__ = ("_text",)
    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, digest: str) -> None:
        self._text = digest.removeprefix("sha256:")[:LABEL_CHARS]

    def __str__(self) -> str:
        return self._text

    def __eq__(self, other: object) -> NoReturn:
        msg = "A label of a digest is for people; compare the whole digests."
        raise TypeError(msg)


def parse_digest(text: str) -> Digest:
    """Check that a text is a digest.

    Raises:
        Invalid: it is not ``sha256:`` followed by 64 lower-case hex digits.
    """
    if not DIGEST_PATTERN.fullmatch(text):
        msg = f"{text[:100]!r} is not a digest; expected sha256: and 64 lower-case hex digits."
        raise Invalid(msg)
    return Digest(text)
