"""Strict parsing of signed bytes: one meaning per byte string, no unknown keys, every refusal ``Malformed``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.alias_generators import to_camel

from kneo.clock import isoformat, parse_time
from kneo.digest import DIGEST_PATTERN, Digest
from kneo.errors import Invalid, KneoError
from kneo.spec.reading.reader import read_json
from kneo.trust.keys import KeyId

NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
"""Names of bundles, environments, roles: safe as one path component, and equal on every file system."""

VERSION = r"[A-Za-z0-9](?:[A-Za-z0-9.+_-]{0,62}[A-Za-z0-9])?"

SEQUENCE_LIMIT = 2**53 - 1
"""Largest whole number that every JSON parser reads alike (RFC 8785)."""


class SignedRecord(BaseModel):
    """A part of a signed document. Keys are camelCase in files; unknown keys are refused, because they would be ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
        defer_build=True,
    )


def _time(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_time(value)
    except KneoError as error:
        raise ValueError(error.message) from error


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        msg = "a time needs a zone"
        raise ValueError(msg)
    return value


def _not_blank(value: str) -> str:
    if not value.strip() or not value.isprintable():
        msg = "must be printable text and not blank"
        raise ValueError(msg)
    return value


Time = Annotated[
    datetime,
    BeforeValidator(_time),
    AfterValidator(_aware),
    PlainSerializer(isoformat, return_type=str, when_used="json"),
]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Version = Annotated[str, Field(pattern=f"^{VERSION}$")]
DigestText = Annotated[Digest, Field(pattern=f"^{DIGEST_PATTERN.pattern}$")]
KeyIdText = Annotated[KeyId, Field(pattern=f"^{DIGEST_PATTERN.pattern}$")]
Line = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_not_blank)]
"""One printable line of text: a person's name, a reason, an address."""

T = TypeVar("T")
R = TypeVar("R", bound=SignedRecord)

Several = Annotated[tuple[T, ...], Field(strict=False)]
"""A list in the file, a tuple in the record, so that a frozen record is immutable throughout."""


def read_strict(data: bytes, *, file: str) -> object:
    """Parse JSON that has exactly one meaning.

    Raises:
        Invalid: ``Malformed``: not JSON, a key twice, trailing text, too deep, or a number that is not exact.
    """
    try:
        return read_json(data, file=file).value
    except Invalid as error:
        raise Invalid(error.message, code="Malformed", hint=error.hint, **error.details) from error


def read_record(kind: type[R], value: object, *, file: str) -> R:
    """Validate a JSON value as a record, and name the invalid field.

    Raises:
        Invalid: ``Malformed``; the message names the file and the field.
    """
    try:
        # Python names are internal; files use camelCase only.
        return kind.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the top level"
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        msg = f"{file}: {field[:200]}: {first['msg']}{more}."
        raise Invalid(msg, code="Malformed", file=file, field=field[:200]) from error
