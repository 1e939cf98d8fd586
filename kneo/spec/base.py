"""Base class and value types of all models of files; and values in messages: quoted, shortened, and nearest known words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import (
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from kneo.clock import parse_duration
from kneo.errors import Invalid

MAX_QUOTED = 80  # characters of a value that a message repeats

_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number"),
    (str, "text"),
    (list, "a list"),
    (dict, "a map"),
)


def quote(value: object) -> str:
    """Quote a value, shortened."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"


def describe(value: object) -> str:
    """Name the kind of a plain value."""
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "nothing")


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word nearest to a word."""
    lower = {name.lower().replace("-", "_"): name for name in reversed(known)}
    found = difflib.get_close_matches(word[:100].lower().replace("-", "_"), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def suggest(word: str, known: Sequence[str]) -> str | None:
    """Suggest the nearest known word, or list the known words."""
    close = nearest(word, known)
    if close is not None:
        return f"Did you mean {close}?"
    return f"Known here: {', '.join(sorted(known)[:30])}." if known else None


MAX_DURATION = timedelta(days=3660)
"""Ten years; a longer one is a typing error, and overflows when added to a date."""

MAX_TEXT = 262_144  # characters; the longest text a person may write into one field
MAX_ITEMS = 20_000  # entries of one list or map


class SpecModel(BaseModel):
    """A part of a file: unknown keys are errors, values are not coerced, records are frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, serialize_by_alias=True, defer_build=True)


class CamelModel(SpecModel):
    """A part of a file whose keys are written like ``promoteFrom``."""

    model_config = ConfigDict(alias_generator=AliasGenerator(alias=to_camel))


@dataclass(frozen=True)
class AtMost:
    """The largest length of a value whose field has no smaller one; of two ``max_length`` pydantic takes the type's."""

    length: int

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        return {**schema, "max_length": min(schema.get("max_length", self.length), self.length)}


T = TypeVar("T")

ListOf: TypeAlias = Annotated[tuple[T, ...], Strict(strict=False), AtMost(MAX_ITEMS)]
"""A list in the file, a tuple in the program."""

MapOf: TypeAlias = Annotated[dict[str, T], AtMost(MAX_ITEMS)]
"""A map from names that people choose."""

Text: TypeAlias = Annotated[str, AtMost(MAX_TEXT)]
JsonObject: TypeAlias = dict[str, object]


def _duration(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        length = parse_duration(value)
    except Invalid as refusal:
        raise PydanticCustomError("duration", "{reason}", {"reason": refusal.message}) from refusal
    if length > MAX_DURATION:
        raise PydanticCustomError("duration", "A duration is at most ten years.")
    return length


_DURATION_SCHEMA: dict[str, object] = {"type": "string", "pattern": "^[0-9]{1,9}[smhd]$", "examples": ["90s", "24h"]}

Duration: TypeAlias = Annotated[timedelta, BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
"""A length of time written ``90s``, ``15m``, ``24h`` or ``7d``."""


def _seconds(value: object) -> object:
    length = _duration(value) if isinstance(value, str) else value
    return int(length.total_seconds()) if isinstance(length, timedelta) else length


Seconds: TypeAlias = Annotated[
    int,
    BeforeValidator(_seconds),
    Field(ge=1, le=int(MAX_DURATION.total_seconds())),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, _DURATION_SCHEMA]}),
]
"""A whole number of seconds, at least one, written as a number or like a :data:`Duration`.

No limit is written by leaving the field out.
"""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_TIMEOUT_EFFECT = r"^(fail|continue|escalate|approve|reject|skip|cancel|select:.+)$"
_DIGEST = r"^sha256:[0-9a-f]{64}$"
_HOST = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$"
_HOST_AND_PORT = r"^([A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:]{2,45}\]):[0-9]{1,5}$"
_FULL_PATH = r"^/[^\n]{1,1000}$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,199}$"

Name: TypeAlias = Annotated[str, Field(pattern=_NAME)]
"""A name that is also a file name."""

Pattern: TypeAlias = Annotated[str, Field(min_length=1, max_length=200)]
"""Text with ``*`` and ``?``. Reading one takes time that grows with the square of its length."""

DigestText: TypeAlias = Annotated[str, Field(pattern=_DIGEST)]

Host: TypeAlias = Annotated[str, Field(pattern=_HOST)]
"""A host name or address."""

HostAndPort: TypeAlias = Annotated[str, Field(pattern=_HOST_AND_PORT)]

FullPath: TypeAlias = Annotated[str, Field(pattern=_FULL_PATH)]

SecretName: TypeAlias = Annotated[str, Field(pattern=_VARIABLE)]
"""The name of an environment variable, or of a file in the folder of secrets."""

TimeoutEffect: TypeAlias = Annotated[str, Field(pattern=_TIMEOUT_EFFECT)]
"""The effect of a timeout; ``select:<option>`` takes that option."""

PATTERN_WORDS = {
    _NAME: "a letter or digit and then at most 99 letters, digits, dots, dashes and underscores",
    _TIMEOUT_EFFECT: "fail, continue, escalate, approve, reject, skip, cancel or select: and an option",
    _DIGEST: "sha256: and 64 lower-case hex digits",
    _HOST: "a host name or an address, without scheme and port",
    _FULL_PATH: "a full path, beginning with /",
    _HOST_AND_PORT: "a host, a colon and a port",
    _VARIABLE: "the name of a variable: letters, digits and underscores",
}
"""The description of each pattern in messages."""

ApiVersion: TypeAlias = Literal["kneo/v1"]


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: annotations are hashed
class Shorthand:
    """The short form of a value that a validator expands, for the JSON Schema."""

    schema: Mapping[str, object]

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(core), dict(self.schema)]}


@dataclass(frozen=True, slots=True)
class FindingCode:
    """The code of the finding about a field whose value is of the wrong kind; without one it is ``E_SCHEMA``."""

    code: str
    aliases: tuple[str, ...] = ()


def refused(code: str, message: str, *path: str | int, suggestion: str | None = None) -> PydanticCustomError:
    """Make an error for a validator to raise.

    Args:
        code: The code its diagnostic gets.
        message: What is wrong.
        path: Where, below the value that is validated.
        suggestion: What to change.
    """
    context = {"message": message, "code": code, "path": path, "suggestion": suggestion}
    return PydanticCustomError("refused", "{message}", context)


def require_choice(value: object, key: str, known: Sequence[str]) -> None:
    """Check the key that decides which of several forms a map has, before the forms are tried.

    Raises:
        PydanticCustomError: the key is missing, or its value is not a known word.
    """
    if not isinstance(value, dict):
        return
    choice = value.get(key)
    listed = f"{', '.join(known[:-1])} or {known[-1]}"
    if key not in value:
        raise refused("E_SCHEMA", f"{key} is required here: {listed}.", key)
    if choice not in known:
        shown = quote(choice) if isinstance(choice, str | int | float) else describe(choice)
        close = nearest(choice, known) if isinstance(choice, str) else None
        suggestion = f"Did you mean {close}?" if close else None
        raise refused("E_SCHEMA", f"{key} is {shown}; it must be one of {listed}.", key, suggestion=suggestion)
