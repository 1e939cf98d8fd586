"""The one way to name bytes and to spell JSON that is hashed.

A digest is always written ``sha256:<64 lower-case hex digits>``, so that the algorithm travels with the value.
"""

from __future__ import annotations

import hashlib
import re
from typing import NewType

import rfc8785

from kneo.errors import Invalid

Digest = NewType("Digest", str)

DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(data: bytes) -> Digest:
    """Name these bytes."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def canonical_json(value: object) -> bytes:
    """Spell a JSON value the one way RFC 8785 allows.

    For our own hashes only; signed bytes are verified as they came and never re-serialised.

    Raises:
        Invalid: the value has no canonical form (NaN, integers beyond 2^53, lone surrogates, other types).
    """
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # it refuses what JSON does not have
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        msg = f"This value cannot be written as canonical JSON: {error}."
        raise Invalid(msg) from error


def digest_of_json(value: object) -> Digest:
    """Name a JSON value independently of key order, spacing and number spelling."""
    return digest_of(canonical_json(value))


def parse_digest(text: str) -> Digest:
    """Check that a text is a digest.

    Raises:
        Invalid: it is not ``sha256:`` followed by 64 lower-case hex digits.
    """
    if not DIGEST_PATTERN.fullmatch(text):
        msg = f"{text[:100]!r} is not a digest; expected sha256: and 64 lower-case hex digits."
        raise Invalid(msg)
    return Digest(text)
